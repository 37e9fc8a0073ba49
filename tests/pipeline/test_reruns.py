"""A change reruns the stages that read it, then the stages that read what those wrote, and no others.

DVC is the real one, on the real dvc.yaml. Only the commands are replaced: each writes new bytes at once, so that every
stage downstream has to run too. The table for people is in docs/experiments.md.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tests.pipeline.test_dvc_yaml import DVC, PARAMS, STAGES

FETCH, INFER, GENERAL = "fetch_model fetch_data", "infer@base infer@adapter", "general@base general@adapter"
ADAPTED = "infer@adapter general@adapter evaluate"  # what reads the adapter, and what reads the outputs of that
# What changes: (the stages that read it, the stages that read their outputs).
RERUNS = {
    "evaluate.confidence": ("evaluate", ""),
    "howto/evaluation/scoring.py": ("evaluate", ""),
    "howto/evaluation/rouge.py": ("train evaluate", "infer@adapter general@adapter"),
    "howto/evaluation/report/page.css": ("evaluate", ""),
    "train.lora.r": ("train", ADAPTED),
    "profiles.{active}.train.learning_rate": ("train", ADAPTED),
    "howto/training/loss.py": ("train", ADAPTED),
    "data/prepared/validation.jsonl": ("train", ADAPTED),
    "infer.top_p": (f"{INFER} {GENERAL}", "evaluate"),
    "profiles.{active}.infer.batch_size": (f"{INFER} {GENERAL}", "evaluate"),
    "howto/inference/decoder.py": (f"train {INFER} {GENERAL}", "evaluate"),
    "data/prepared/test.jsonl": (f"{INFER} evaluate", ""),
    "general.max_tokens": (f"{GENERAL} evaluate", ""),
    "data/chat": (GENERAL, "evaluate"),
    "data/general": (GENERAL, "evaluate"),
    "howto/general/inputs.py": (f"{GENERAL} evaluate", ""),
    "machine.threads": (f"train {INFER} {GENERAL}", "evaluate"),
    "howto/modeling/chat.py": (f"fetch_model train {INFER} {GENERAL}", "evaluate"),
    "profiles.{active}.machine.precision": (f"fetch_model train {INFER} {GENERAL}", "evaluate"),
    "prepare.split.seed": ("prepare", f"train {INFER} {ADAPTED}"),
    "howto/data/split.py": ("prepare", f"train {INFER} {ADAPTED}"),
    "data/howto": ("fetch_data", f"prepare train {INFER} {ADAPTED}"),
    "profiles.{active}.data.source": ("fetch_data evaluate", f"prepare train {INFER} {ADAPTED}"),
    "profiles.{active}.model.weights_sha256": ("fetch_model", f"train {INFER} {GENERAL} evaluate"),
    "profiles.{active}.model.source": ("fetch_model evaluate", f"train {INFER} {GENERAL}"),
    "howto/sources/hub.py": (FETCH, f"prepare train {INFER} {GENERAL} evaluate"),
    "howto/core/errors.py": (f"{FETCH} prepare train {INFER} {GENERAL} evaluate", ""),
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
    for name in ("howto", "stages", "data/howto", "data/chat", "data/general"):
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
            assert len(made.reproduce()) == len(DVC["stages"]) + 2  # infer and general are two each
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
