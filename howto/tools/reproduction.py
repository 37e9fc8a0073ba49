"""What a run made, output by output, beside what was committed; and where the two part first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from howto.core.errors import UserError

Lock = dict[str, Any]  # the stages of a dvc.lock


@dataclass(frozen=True)
class Output:
    """One output of a stage, with its hashes."""

    path: str
    committed: str | None  # None: dvc.lock does not know it
    made: str | None  # None: the run did not make it

    @property
    def same(self) -> bool:
        """Whether it was made again, byte for byte."""
        return self.committed is not None and self.committed == self.made


@dataclass(frozen=True)
class Stage:
    """One stage as it was committed and as it ran now."""

    name: str
    outputs: list[Output]
    inputs: list[str]  # made by other stages, and not the committed ones
    otherwise: list[str]  # code, params or command that are not those in the committed dvc.lock

    @property
    def same(self) -> bool:
        """Whether all its outputs were made again."""
        return all(output.same for output in self.outputs)


@dataclass(frozen=True)
class Found:
    """What came of making a committed run again."""

    command: str
    status: int  # of the command
    stages: list[Stage]  # in the order of the pipeline
    unlike_lock: list[str]  # outputs that git has, but not as the committed dvc.lock says
    left: list[str]  # what git sees changed, beside outputs that differ

    @property
    def outputs(self) -> list[Output]:
        """Of all stages."""
        return [output for stage in self.stages for output in stage.outputs]


def read_lock(text: str, name: str) -> Lock:
    """The stages of a dvc.lock.

    Raises:
        UserError: it is damaged.
    """
    try:
        stages = YAML(typ="safe", pure=True).load(text)["stages"]
        for stage in stages.values():
            hashes(stage, "deps"), hashes(stage, "outs")
    except (KeyError, TypeError, AttributeError, YAMLError):
        raise UserError(f"{name}: damaged; make it again with `dvc repro`, and commit it") from None
    return dict(stages)


def hashes(stage: Mapping[str, Any], kind: str) -> dict[str, str]:
    """The hash of each of a stage's `deps` or `outs`, by path."""
    return {part["path"]: part["md5"] for part in stage.get(kind, [])}


def md5(content: bytes) -> str:
    """The hash that DVC gives a file."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def stages_of(folder: Path, committed: Lock) -> list[Stage]:
    """Every stage of the project in `folder`, which has been run, in the order of the pipeline."""
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with Repo(str(folder)) as repo:
        try:
            listed = list(repo.index.stages)
        except DvcException as error:
            raise UserError(f"dvc.yaml: DVC cannot read what is committed ({' '.join(str(error).split())})") from None
        order: list[Any] = list(networkx.lexicographical_topological_sort(repo.index.graph.reverse(), key=listed.index))
        made = {str(stage.name): {str(out.def_path): _made(out) for out in stage.outs} for stage in order}
    path = folder / "dvc.lock"
    fresh = read_lock(path.read_text(encoding="utf-8"), str(path)) if path.exists() else {}
    paths = {path for outs in made.values() for path in outs}
    paths |= {path for stage in committed.values() for path in hashes(stage, "outs")}
    return [_stage(name, outs, committed.get(name, {}), fresh.get(name, {}), paths) for name, outs in made.items()]


def _made(out: Any) -> str | None:
    """The hash of an output that lies there as DVC's record of this run has it."""
    return None if out.status() or not out.hash_info.value else str(out.hash_info.value)


def _stage(name: str, outs: Mapping[str, str | None], committed: Lock, fresh: Lock, paths: set[str]) -> Stage:
    before, now = hashes(committed, "deps"), hashes(fresh, "deps")
    differing = sorted(path for path in before.keys() | now.keys() if before.get(path) != now.get(path))
    inputs = [path for path in differing if any(Path(path).is_relative_to(made) for made in paths)]
    otherwise = [path for path in differing if path not in inputs]
    if committed and fresh:
        otherwise += [key for key in ("params", "cmd") if committed.get(key) != fresh.get(key)]
    known = hashes(committed, "outs")
    listed = [*outs, *(path for path in known if path not in outs)]
    return Stage(name, [Output(path, known.get(path), outs.get(path)) for path in listed], inputs, otherwise)
