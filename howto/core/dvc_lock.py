"""Read dvc.lock, in which DVC records the last run of each stage, and find the folder that DVC works in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from howto.core.errors import UserError
from howto.core.paths import LOCK


@dataclass(frozen=True)
class LockedStage:
    """What one stage read and wrote: MD5 hashes by path, and values by params file and dotted key."""

    deps: dict[str, str]
    params: dict[str, dict[str, Any]]
    outs: dict[str, str]


def read_lock(path: Path = LOCK) -> dict[str, LockedStage]:
    """Return the stages by name, in the order of the file.

    Raise UserError if the file is missing or damaged.
    """
    try:
        stages = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))["stages"]
        return {name: _stage(stage) for name, stage in stages.items()}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run `dvc repro`, which writes it.") from None
    except (YAMLError, AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged. Run `howto recover`, or restore it from git.") from None


def dvc_root() -> Path | None:
    """Return the working directory or the first folder above it that has .dvc, as DVC does; None if none has it."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), None)


def _stage(stage: dict[str, Any]) -> LockedStage:
    params = {file: dict(values) for file, values in stage.get("params", {}).items()}
    deps, outs = ({part["path"]: part["md5"] for part in stage.get(kind, [])} for kind in ("deps", "outs"))
    return LockedStage(deps, params, outs)
