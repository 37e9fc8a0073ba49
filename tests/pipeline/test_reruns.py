"""A change reruns the stages that read it, then the stages that read what those wrote, and no others.

DVC is the real one, on the real dvc.yaml. Only the commands are replaced: each writes new bytes at once, so that every
stage downstream has to run too. The table for people is in docs/experiments.md.
"""

from __future__ import annotations

import ast
import importlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tests.pipeline.test_dvc_yaml import DVC, PARAMS, STAGES, local_imports

FETCH, INFER = "fetch_model fetch_data", "infer@base infer@adapter"
# What changes: (the stages that read it, the stages that read their outputs).
RERUNS = {
    "evaluate.confidence": ("evaluate", ""),
    "howto/evaluation/rouge.py": ("evaluate", ""),
    "howto/evaluation/report/page.css": ("evaluate", ""),
    "train.lora.r": ("train", "infer@adapter evaluate"),
    "profiles.{active}.train.learning_rate": ("train", "infer@adapter evaluate"),
    "howto/training/loss.py": ("train", "infer@adapter evaluate"),
    "data/prepared/validation.jsonl": ("train", "infer@adapter evaluate"),
    "infer.top_p": (INFER, "evaluate"),
    "profiles.{active}.infer.batch_size": (INFER, "evaluate"),
    "howto/inference/decoder.py": (INFER, "evaluate"),
    "data/prepared/test.jsonl": (f"{INFER} evaluate", ""),
    "machine.threads": (f"train {INFER}", "evaluate"),
    "howto/modeling/prompt.py": (f"train {INFER}", "evaluate"),
    "profiles.{active}.machine.precision": (f"fetch_model train {INFER}", "evaluate"),
    "prepare.split.seed": ("prepare", f"train {INFER} evaluate"),
    "howto/data/split.py": ("prepare", f"train {INFER} evaluate"),
    "data/howto": ("fetch_data", f"prepare train {INFER} evaluate"),
    "profiles.{active}.data.source": ("fetch_data evaluate", f"prepare train {INFER}"),
    "profiles.{active}.model.weights_sha256": ("fetch_model", f"train {INFER} evaluate"),
    "profiles.{active}.model.source": ("fetch_model evaluate", f"train {INFER}"),
    "howto/sources/hub.py": (FETCH, f"prepare train {INFER} evaluate"),
    "howto/core/errors.py": (f"{FETCH} prepare train {INFER} evaluate", ""),
    "profiles.{other}.train.learning_rate": ("", ""),
    "howto/params.py": ("", ""),
    "howto/tools/ask.py": ("", ""),
}


class Pipeline:
    """The project's pipeline with quick commands, up to date."""

    def __init__(self, folder: Path, repo: Repo) -> None:
        self.folder, self.repo = folder, repo

    def status(self) -> set[str]:
        """The stages with a changed dependency or param."""
        self.repo._reset()
        return {stage for stage, entries in self.repo.status().items() if any("changed deps" in e for e in entries)}

    def reproduce(self) -> set[str]:
        """Bring all up to date; return the stages that ran."""
        self.repo._reset()
        return {stage.addressing for stage in self.repo.reproduce()}

    def change(self, name: str) -> None:
        """Change a leaf of params.yaml, a file, or an output (which is then committed, as by `dvc commit`)."""
        if "/" not in name:
            yaml = YAML(typ="safe")
            values: dict[str, Any] = yaml.load(self.folder / "params.yaml")
            *way, last = name.split(".")
            section = values
            for key in way:
                section = section[key]
            section[last] = f"{section[last]} or another"
            yaml.dump(values, self.folder / "params.yaml")
            return
        path = self.folder / name
        path = next(path.iterdir()) if path.is_dir() else path
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        self.repo._reset()
        for out in self.repo.index.outs:
            if Path(name).is_relative_to(out.def_path):
                self.repo.commit(out.stage.addressing, force=True)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("pipeline")
    for name in ("howto", "stages", "data/howto"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n", encoding="utf-8")
    (folder / "write.sh").write_text(
        'for file; do mkdir -p "${file%/*}"; cat /proc/sys/kernel/random/uuid > "$file"; done\n', encoding="utf-8"
    )
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    for stage in STAGES.values():
        text = text.replace(f"cmd: {stage['cmd']}\n", f"cmd: sh write.sh {' '.join(written(stage))}\n")
    assert "python" not in text
    (folder / "dvc.yaml").write_text(text, encoding="utf-8")
    YAML(typ="safe").dump(PARAMS, folder / "params.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Repo(str(folder)) as repo:
            made = Pipeline(folder, repo)
            assert len(made.reproduce()) == len(DVC["stages"]) + 1  # infer is two
            yield made


def written(stage: dict[str, Any]) -> list[str]:
    """The files that a stage writes: within a folder those that another stage reads, or one."""
    read = {dep for other in STAGES.values() for dep in other["deps"]}
    names = [
        *stage.get("outs", []),
        *(name for kind in ("metrics", "plots") for one in stage.get(kind, []) for name in one),
    ]
    inner = {name: sorted(dep for dep in read if dep.startswith(f"{name}/")) for name in names}
    return [file for name in names for file in (inner[name] or [name if "." in name else f"{name}/file"])]


@pytest.mark.parametrize("change", RERUNS)
def test_a_change_reruns_the_stages_that_read_it_and_those_after_them(pipeline: Pipeline, change: str) -> None:
    direct, after = (set(stages.split()) for stages in RERUNS[change])
    active = str(PARAMS["profile"])
    other = next(name for name in PARAMS["profiles"] if name != active)
    pipeline.change(change.format(active=active, other=other))
    assert pipeline.status() == direct
    assert pipeline.reproduce() == direct | after


def test_every_section_of_params_and_every_folder_of_code_is_in_the_table() -> None:
    sections = {key for key in PARAMS if key not in ("profile", "profiles")}
    assert sections <= {change.split(".")[0] for change in RERUNS}
    folders = {f"howto/{path.name}/" for path in (ROOT / "howto").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders <= {change[: change.rfind("/") + 1] for change in RERUNS} | {"howto/evaluation/"}


# Read, but nothing that the stage makes comes of it.
ONLY_CHECKED = {
    "evaluate": {"infer", "profiles.${profile}.infer"},  # compared with what dvc.lock says of the predictions
}


@pytest.mark.parametrize("name", STAGES)
def test_the_params_that_a_stage_reads_are_those_that_it_declares(name: str) -> None:
    read: set[str] = set()
    for module in local_imports(f"stages/{name}.py") - {"howto/core/config.py", "howto/modeling/fingerprint.py"}:
        read |= params_read(ast.parse((ROOT / module).read_text(encoding="utf-8")))
    assert read - ONLY_CHECKED.get(name, set()) == set(STAGES[name]["params"])


def params_read(tree: ast.AST) -> set[str]:
    """The keys of params.yaml that a module asks for: `params.section(Kind)`, `params.value(key)`, `params.profile`."""
    kinds = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).endswith(".config")
        for alias in node.names
    }
    found: set[str] = set()
    in_keys: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):  # `params.profile` within a key names the section, and is no value
            in_keys |= {id(part) for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            key = "".join(str(part.value) if isinstance(part, ast.Constant) else "${profile}" for part in node.values)
            found |= {key} if key.startswith("profiles.") else set()
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            argument = node.args[0]
            if node.func.attr == "section" and isinstance(argument, ast.Name):
                section = getattr(importlib.import_module(str(kinds[argument.id])), argument.id)
                found.add(section.key.replace("*", "${profile}"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "profile" and id(node) not in in_keys:
            found |= {"profile"} if isinstance(node.value, ast.Name) and node.value.id == "params" else set()
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Tuple):
            keys = [one.value for one in node.iter.elts if isinstance(one, ast.Constant)]
            found |= {str(key) for key in keys} if set(keys) <= PARAMS.keys() else set()
    return found
