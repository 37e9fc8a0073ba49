"""dvc.yaml names what each stage depends on: too little gives stale results, too much gives needless runs."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages import infer, train

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


def leaves(value: Any, key: str) -> set[str]:
    """Dotted keys of the leaves of a params tree; a mapping with nothing in it is one."""
    if not isinstance(value, dict) or not value:
        return {key}
    return {leaf for name, part in value.items() for leaf in leaves(part, f"{key}.{name}" if key else name)}


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_imports_lies_in_the_files_and_folders_that_it_names(name: str) -> None:
    code = [dep for dep in STAGES[name]["deps"] if dep.startswith(("stages/", "howto/"))]
    imported = local_imports(f"stages/{name}.py")
    for path in imported:
        assert any(path == dep or path.startswith(f"{dep}/") for dep in code), f"{name} imports {path}"
    for dep in code:
        assert any(path == dep or path.startswith(f"{dep}/") for path in imported), f"{name} needs nothing in {dep}"


@pytest.mark.parametrize("stage", [train, infer])
def test_a_checkpoint_is_named_by_the_code_that_the_stage_depends_on(stage: ModuleType) -> None:
    deps = STAGES[stage.__name__.split(".")[-1]]["deps"]
    assert list(stage.CODE) == [dep for dep in deps if dep.startswith(("stages/", "howto/"))]


def test_the_walk_sees_an_import_inside_a_function() -> None:
    assert "howto/training/loss.py" in local_imports("stages/train.py")


def test_the_walk_passes_over_imports_for_types_alone() -> None:
    assert "howto/modeling/collate.py" not in local_imports("stages/evaluate.py")


@pytest.mark.parametrize("name", STAGES)
def test_every_param_that_a_stage_names_is_in_params_yaml(name: str) -> None:
    for param in STAGES[name].get("params", []):
        for profile in PARAMS["profiles"]:
            value = PARAMS
            for key in param.replace("${profile}", profile).split("."):
                assert key in value, f"{name}: {param} is not in params.yaml"
                value = value[key]


def test_every_leaf_of_params_yaml_is_a_param_of_some_stage() -> None:
    named = {param for stage in STAGES.values() for param in stage.get("params", [])}
    active = PARAMS["profile"]
    for leaf in leaves(PARAMS, "") - {"profile"}:
        if leaf.startswith("profiles.") and not leaf.startswith(f"profiles.{active}."):
            continue
        generic = leaf.replace(f"profiles.{active}.", "profiles.${profile}.")
        assert any(generic == param or generic.startswith(param + ".") for param in named), f"{leaf} moves no stage"


def test_every_stage_says_what_it_is_for() -> None:
    assert all(stage.get("desc") for stage in STAGES.values())


def test_every_output_is_ignored_by_the_hand_written_gitignore_or_kept_in_git() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()}
    for name, stage in STAGES.items():
        for out in stage.get("outs", []):
            folder = str(Path(out.replace("${key}", "base")).parent)
            assert out in ignored or folder in ignored, f"{name}: {out} would be put into a .gitignore by DVC"
        for kept in [*stage.get("metrics", []), *stage.get("plots", [])]:
            assert [options["cache"] for options in kept.values()] == [False], f"{name}: {kept} belongs in git"
