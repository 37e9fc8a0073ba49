"""The table in docs/experiments.md of what reruns which stages: true of every knob, file and output, to the letter.

DVC is the real one, on the real dvc.yaml. Only what stands after `cmd:` is another: a command that takes no time and
never writes the same bytes twice, so that whatever depends on a stage that ran has to run too. tests/test_pipeline.py
has the real stages, whose outputs may come out the same.
"""

from __future__ import annotations

import ast
import copy
import importlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.conftest import ROOT
from tests.test_dvc_yaml import DVC, PARAMS, READ_BY, STAGES, leaves, local_imports

SHORT = {"infer": ("infer@base", "infer@adapter"), "fetch": ("fetch_model", "fetch_data"), "-": ()}
ACTIVE = str(PARAMS["profile"])


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    patterns: tuple[str, ...]
    direct: frozenset[str]
    """The stages that run."""
    after: frozenset[str]
    """Those that run too if what the former write comes out otherwise."""


def table() -> list[Line]:
    """The lines of the table in docs/experiments.md."""
    text = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
    lines = text.split("| change | runs |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    found = []
    for line in lines:
        what, direct, after = line.strip("|").split("|")
        patterns = tuple(one for written in re.findall(r"`([^`]+)`", what) for one in spread(written))
        found.append(Line(patterns, stages(direct), stages(after)))
    return found


def spread(pattern: str) -> list[str]:
    """`a/{b,c}.py` is `a/b.py` and `a/c.py`."""
    if not (braces := re.search(r"\{([^}]*)\}", pattern)):
        return [pattern]
    return [pattern[: braces.start()] + part.strip() + pattern[braces.end() :] for part in braces[1].split(",")]


def stages(cell: str) -> frozenset[str]:
    return frozenset(name for word in cell.replace(",", " ").split() for name in SHORT.get(word, (word,)))


TABLE = table()


def line_of(name: str) -> Line:
    """The one line that `name` stands in."""
    found = [line for line in TABLE if any(fnmatchcase(name, pattern) for pattern in line.patterns)]
    assert len(found) == 1, f"{name} is in {len(found)} lines of the table in docs/experiments.md; one is wanted"
    return found[0]


def of_profile(leaf: str) -> str:
    """How the table calls a leaf: a profile's stands there once, for whichever profile is active."""
    return re.sub(r"^profiles\.[^.]+", "profiles.<active>", leaf)


def files() -> list[str]:
    """Every file of code, and what code reads."""
    return sorted(
        str(path.relative_to(ROOT))
        for folder in ("stages", "howto")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def outputs() -> list[str]:
    """Every output of a stage that another stage reads."""
    named = {dep.replace("${item}", folder) for stage in STAGES.values() for dep in stage["deps"] for folder in BASES}
    return sorted(dep for dep in named if dep.startswith(("data/", "models/", "metrics/")) and dep != ROWS)


ROWS = "data/howto"  # the rows that Git keeps
BASES: list[str] = list(DVC["stages"]["infer"]["foreach"].values())
KNOBS = sorted({of_profile(leaf) for leaf in leaves(PARAMS, "")})
EVERYTHING = [*KNOBS, *files(), ROWS, *outputs()]


@dataclass
class Pipeline:
    """The project's pipeline with quick commands, all of it up to date."""

    folder: Path
    repo: Repo

    def status(self) -> dict[str, set[str]]:
        """For each stage that would run, what DVC has found changed: files, and declared keys of params.yaml."""
        self.repo._reset()
        found: dict[str, set[str]] = {}
        for stage, entries in self.repo.status().items():
            for changes in (entry["changed deps"] for entry in entries if "changed deps" in entry):
                keys = changes.pop("params.yaml", {})
                found.setdefault(stage, set()).update(changes, keys)
        return found

    def reproduce(self) -> set[str]:
        """Bring all up to date; the stages that ran."""
        self.repo._reset()
        return {stage.addressing for stage in self.repo.reproduce()}

    def params(self) -> dict[str, Any]:
        values: dict[str, Any] = YAML(typ="safe").load(self.folder / "params.yaml")
        return values

    def set_params(self, values: dict[str, Any]) -> None:
        YAML(typ="safe").dump(values, self.folder / "params.yaml")

    def change(self, name: str) -> None:
        """Change a leaf of params.yaml, a file, or an output (which is then committed, as `dvc commit` does)."""
        if "/" not in name:
            values = self.params()
            if name == "profile":
                values[name] = next(other for other in values["profiles"] if other != values[name])
            else:
                change_leaf(values, name.replace("<active>", values["profile"]))
            self.set_params(values)
            return
        path = self.folder / name
        path = next(path.iterdir()) if path.is_dir() else path
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        if name in outputs():
            self.repo._reset()
            (stage,) = {out.stage for out in self.repo.index.outs if Path(name).is_relative_to(out.def_path)}
            self.repo.commit(stage.addressing, force=True)


def change_leaf(values: dict[str, Any], leaf: str) -> None:
    *way, last = leaf.split(".")
    for key in way:
        values = values[key]
    values[last] = f"{values[last]} or another"


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("pipeline")
    for name in files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    shutil.copytree(ROOT / ROWS, folder / ROWS)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n", encoding="utf-8")
    (folder / "write.sh").write_text(
        'for file; do mkdir -p "${file%/*}"; cat /proc/sys/kernel/random/uuid > "$file"; done\n', encoding="utf-8"
    )
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    for stage in STAGES.values():
        assert text.count(f"cmd: {stage['cmd']}\n") == 1
        text = text.replace(f"cmd: {stage['cmd']}\n", f"cmd: sh write.sh {' '.join(written(stage))}\n")
    (folder / "dvc.yaml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with Repo(str(folder)) as repo:
            made = Pipeline(folder, repo)
            made.set_params(PARAMS)
            assert len(made.reproduce()) == len(DVC["stages"]) + len(BASES) - 1
            yield made


def written(stage: dict[str, Any]) -> list[str]:
    """The files that a stage writes; in a folder those that another stage reads, or one."""
    names = [
        *stage.get("outs", []),
        *(name for kind in ("metrics", "plots") for one in stage.get(kind, []) for name in one),
    ]
    inner = {name: [dep for dep in outputs() if dep.startswith(f"{name}/")] for name in names}
    return [file for name in names for file in (inner[name] or [name if "." in name else f"{name}/file"])]


def test_every_knob_file_and_output_is_in_just_one_line_and_every_pattern_means_something() -> None:
    wrong = []
    for name in EVERYTHING:
        lines = [line for line in TABLE if any(fnmatchcase(name, pattern) for pattern in line.patterns)]
        if len(lines) != 1:
            readers = [
                stage for stage, said in STAGES.items() if any(Path(name).is_relative_to(d) for d in said["deps"])
            ]
            wrong.append(f"{name} is in {len(lines)}" + (f" (it is a dep of {', '.join(readers)})" if readers else ""))
    assert not wrong, f"not in one line of the table in docs/experiments.md: {'; '.join(wrong)}"
    names = [*EVERYTHING, "profiles.<other>.any"]
    for pattern in (pattern for line in TABLE for pattern in line.patterns):
        assert any(fnmatchcase(name, pattern) for name in names), f"docs/experiments.md: {pattern} matches nothing"


def test_the_stages_that_come_after_are_those_that_read_what_the_others_write(pipeline: Pipeline) -> None:
    """So a wrong line cannot be hidden by calling a stage one that runs at once, or one that comes after."""
    graph = pipeline.repo.index.graph  # from a stage to those whose outputs it reads
    before = {stage.addressing: {other.addressing for other in graph.successors(stage)} for stage in graph}
    for line in TABLE:
        reached = set(line.direct)
        while more := {stage for stage, read in before.items() if read & reached} - reached:
            reached |= more
        after = reached - line.direct
        assert after == line.after, f"after {sorted(line.direct)} come {sorted(after)}, not {sorted(line.after)}"


@pytest.mark.parametrize("profile", PARAMS["profiles"])
def test_each_knob_makes_just_the_stages_of_its_line_run(pipeline: Pipeline, profile: str) -> None:
    """Several knobs are changed at a time, no two of which a stage declares by the same key: DVC says key by key."""
    base = {**PARAMS, "profile": profile}
    pipeline.set_params(base)
    pipeline.reproduce()
    for knobs in turns(profile):
        values = copy.deepcopy(base)
        for knob in knobs:
            change_leaf(values, knob)
        pipeline.set_params(values)
        found = pipeline.status()
        for knob in knobs:
            ran = {stage for stage, changed in found.items() if any(covers(key, knob) for key in changed)}
            assert ran == line_of(of_profile(knob)).direct, f"{knob}: {sorted(ran)}"
        keys: set[str] = set().union(*found.values())
        assert all(any(covers(key, knob) for knob in knobs) for key in keys), f"{knobs} changed {sorted(keys)}"
    pipeline.set_params(base)
    assert pipeline.status() == {}


def turns(profile: str) -> list[list[str]]:
    """The knobs of a profile, and with the active one those that all share, in lists of which each can be told apart.

    A key within another (model.source in model) has a turn of its own, or one knob would change both.
    """
    keys = {param.replace("${profile}", profile) for stage in STAGES.values() for param in stage["params"]}
    groups: dict[tuple[bool, str], list[str]] = {}
    for knob in sorted(leaves(PARAMS, "")):
        if knob.startswith(f"profiles.{profile}.") or (profile == ACTIVE and not knob.startswith("profile")):
            of_knob = sorted((key for key in keys if covers(key, knob)), key=len) or [knob]
            groups.setdefault((len(of_knob) > 1, of_knob[-1]), []).append(knob)
    found: list[list[str]] = []
    for nested in (False, True):
        some = [knobs for (is_nested, _), knobs in groups.items() if is_nested == nested]
        found += [[knob for knob in turn if knob] for turn in zip_longest(*some)]
    return found


def covers(key: str, leaf: str) -> bool:
    return f"{leaf}.".startswith(f"{key}.")


def test_each_file_makes_just_the_stages_of_its_line_run(pipeline: Pipeline) -> None:
    """All files are changed at once: DVC says file by file which stage wants it."""
    pipeline.set_params(PARAMS)
    pipeline.reproduce()
    names = [*files(), ROWS]
    for name in names:
        pipeline.change(name)
    found = pipeline.status()
    for name in names:
        ran = {stage for stage, changed in found.items() if any(Path(name).is_relative_to(dep) for dep in changed)}
        assert ran == line_of(name).direct, f"{name}: {sorted(ran)}"
    pipeline.reproduce()


@pytest.mark.parametrize("number", range(len(TABLE)))
def test_a_change_of_each_line_runs_its_stages_all_that_come_after_and_no_other(
    pipeline: Pipeline, number: int
) -> None:
    line = TABLE[number]
    own = {of_profile(leaf) for leaf in leaves(PARAMS, "") if not leaf.startswith("profiles.") or is_active(leaf)}
    chosen = [name for name in [*sorted(own), *files(), ROWS, *outputs()] if line_of(name) is line]
    if line.direct:
        chosen = chosen[:1]
    else:  # all that runs nothing, at once
        chosen += [leaf for leaf in leaves(PARAMS, "") if leaf.startswith("profiles.") and not is_active(leaf)]
    pipeline.reproduce()
    for name in chosen:
        pipeline.change(name)
    assert pipeline.reproduce() == line.direct | line.after
    if chosen == ["profile"]:
        pipeline.set_params(PARAMS)


def is_active(leaf: str) -> bool:
    return leaf.startswith(f"profiles.{ACTIVE}.")


# --- What the table cannot say: that a stage reads no knob and no file that it does not declare ---------------------

# Read, but nothing that the stage makes comes of it.
ONLY_CHECKED = {
    "evaluate": {"infer", "profiles.${profile}.infer"},  # compared with what dvc.lock says of the predictions
}


@pytest.mark.parametrize("name", STAGES)
def test_the_knobs_that_a_stage_reads_are_those_that_it_declares(name: str) -> None:
    read: set[str] = set()
    for module in local_imports(f"stages/{name}.py") - {"howto/params/file.py", "howto/inputs.py"}:
        if module.endswith(".py"):
            read |= knobs_read(ast.parse((ROOT / module).read_text(encoding="utf-8")))
    assert read - ONLY_CHECKED.get(name, set()) == set(STAGES[name]["params"])


def knobs_read(tree: ast.AST) -> set[str]:
    """The keys of params.yaml that a module asks for: `params.section(Kind)`, `params.value(key)`, `params.profile`."""
    kinds = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("howto.params.")
        for alias in node.names
    }
    found: set[str] = set()
    in_keys: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):  # `params.profile` within a key names the section, and is no value
            in_keys |= {id(part) for part in ast.walk(node) if isinstance(part, ast.Attribute)}
            if (key := written_key(node)).startswith("profiles."):
                found.add(key)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
            argument = node.args[0]
            if node.func.attr == "section" and isinstance(argument, ast.Name):
                found.add(section_key(kinds[argument.id], argument.id))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "profile" and id(node) not in in_keys:
            found |= {"profile"} if isinstance(node.value, ast.Name) and node.value.id == "params" else set()
        if isinstance(node, ast.For | ast.comprehension) and isinstance(node.iter, ast.Tuple):
            found |= {str(one.value) for one in node.iter.elts if isinstance(one, ast.Constant) and one.value in PARAMS}
    return found


def written_key(node: ast.JoinedStr) -> str:
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "${profile}" for part in node.values)


def section_key(module: str | None, kind: str) -> str:
    key: str = getattr(importlib.import_module(str(module)), kind).key
    return key.replace("*", "${profile}")


def test_a_module_that_looks_for_files_beside_itself_is_known_to_do_so() -> None:
    """What it reads there must be a dep as well: see READ_BY in tests/test_dvc_yaml.py."""
    looking = {
        name for name in files() if name.endswith(".py") and "__file__" in (ROOT / name).read_text(encoding="utf-8")
    }
    # inputs looks at the modules that are imported; the others are no part of a stage
    ours = ("check_network", "export", "inputs")
    assert looking == {*READ_BY, *(f"howto/{name}.py" for name in ours)}


def test_a_module_that_imports_by_name_is_known_to_do_so() -> None:
    """The walk over imports does not see those: the sections of params.yaml, and what a person asks a stage for."""
    importing = {
        name
        for name in files()
        if name.endswith(".py") and "import_module(" in (ROOT / name).read_text(encoding="utf-8")
    }
    assert importing == {"howto/params/file.py", "stages/evaluate.py", "stages/infer.py"}
