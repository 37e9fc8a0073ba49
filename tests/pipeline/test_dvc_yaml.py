"""dvc.yaml names what each stage depends on: too little gives stale results, too much gives needless runs."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ruamel.yaml import YAML

from howto.core.config import Params
from stages import general, infer, train
from tests.support.in_process import run_stage_here

ROOT = Path(__file__).parents[2]
DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
# It checks every section of params.yaml, also those of other stages, which change no output of this one.
CHECKS_ALL_PARAMS = "howto/params.py"
STAGES: dict[str, dict[str, Any]] = {name: stage.get("do", stage) for name, stage in DVC["stages"].items()}


def local_imports(path: str) -> set[str]:
    """The local files that a module imports when it runs, itself included, however deep; all paths from the root."""
    found: set[str] = set()
    waiting = _files(path.removesuffix(".py").replace("/", "."))  # a package's `__init__.py` runs first
    while waiting:
        current = waiting.pop()
        if current in found or current == CHECKS_ALL_PARAMS:
            continue
        found.add(current)
        tree = ast.parse((ROOT / current).read_text(encoding="utf-8"))
        for node in _run_nodes(tree):
            waiting += [file for name in _names(node) for file in _files(name)]
    return found


def _run_nodes(tree: ast.AST) -> list[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    nodes = []
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        nodes += [child, *_run_nodes(child)]
    return nodes


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def _files(name: str) -> list[str]:
    """The module's file and its packages' `__init__.py`, those that hold more than a docstring."""
    parts = name.split(".")
    module = "/".join(parts) + ".py"
    files = [module] if (ROOT / module).is_file() else []
    for depth in range(1, len(parts) + 1):
        init = "/".join(parts[:depth]) + "/__init__.py"
        if (ROOT / init).is_file() and len(ast.parse((ROOT / init).read_text(encoding="utf-8")).body) > 1:
            files.append(init)
    return files


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_imports_lies_in_the_files_and_folders_that_it_names(name: str) -> None:
    code = [dep for dep in STAGES[name]["deps"] if dep.startswith(("stages/", "howto/"))]
    imported = local_imports(f"stages/{name}.py")
    for path in imported:
        assert any(path == dep or path.startswith(f"{dep}/") for dep in code), f"{name} imports {path}"
    for dep in code:
        assert any(path == dep or path.startswith(f"{dep}/") for path in imported), f"{name} needs nothing in {dep}"


@pytest.mark.parametrize("stage", [train, infer, general])
def test_a_fingerprint_is_of_the_code_that_the_stage_depends_on(stage: ModuleType) -> None:
    deps = STAGES[stage.__name__.split(".")[-1]]["deps"]
    assert list(stage.CODE) == [dep for dep in deps if dep.startswith(("stages/", "howto/"))]


@pytest.mark.parametrize("profile", PARAMS["profiles"])
def test_the_sections_of_params_yaml_are_those_that_some_stage_names(profile: str) -> None:
    named = {param.replace("${profile}", profile) for stage in STAGES.values() for param in stage["params"]}
    sections = PARAMS.keys() - {"profiles"} | {f"profiles.{profile}.{key}" for key in PARAMS["profiles"][profile]}
    assert {".".join(param.split(".")[:3]) for param in named} == sections


# Read, but nothing that the stage makes comes of it: evaluate compares it with what dvc.lock says of the predictions,
# prepare that evaluate will see the words of the references, and train that the base has room for such answers.
ONLY_CHECKED = {name: {"infer", "profiles.${profile}.infer"} for name in ("evaluate", "train")}
ONLY_CHECKED["prepare"] = {"evaluate.tokenizer"}


@pytest.mark.parametrize("name", STAGES)
def test_the_params_that_a_stage_reads_are_those_that_it_names(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    value_of = Params.value

    def value(params: Params, key: str) -> Any:
        read.add(key.replace(f"profiles.{params.profile}.", "profiles.${profile}."))
        return value_of(params, key)

    monkeypatch.setattr(Params, "value", value)
    monkeypatch.setattr("howto.params.check_overrides", lambda _: None)  # which, too, checks sections of other stages
    done = run_stage_here(f"{name}@base" if "foreach" in DVC["stages"][name] else name, workplace)
    assert done.returncode == 0, done.stderr
    assert read - ONLY_CHECKED.get(name, set()) == set(STAGES[name]["params"]) - {"profile"}
