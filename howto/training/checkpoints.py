"""Checkpoints of a run, written atomically, and found again only by a run with the same inputs.

They are in a folder that DVC does not track: it removes a stage's outputs before the stage runs.
"""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from howto.core.atomic import atomic_folder
from howto.core.errors import UserError

KEEP_CHECKPOINTS = 2  # of a run
KEEP_RUNS = 3  # that did not finish, this one included
MIN_SECONDS = 1.0  # between two checkpoints
MAX_TIME_SHARE = 0.01  # of the run's time, for saving


class Checkpoints:
    """The checkpoints of the run `key`, in a folder of its own."""

    def __init__(self, folder: Path, key: str, *, processes: int = 1) -> None:
        """Remove the checkpoints of older runs. `processes` share the work of this run."""
        self.folder = folder / key
        self._processes = processes
        self._next = time.monotonic() + MIN_SECONDS
        others = [path for path in folder.glob("[0-9a-f]*") if path != self.folder]
        for path in sorted(others, key=lambda path: path.stat().st_mtime)[: -(KEEP_RUNS - 1)]:
            shutil.rmtree(path, ignore_errors=True)

    @property
    def due(self) -> bool:
        """Whether it is time to save one."""
        return time.monotonic() >= self._next

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Save what is needed to continue after `step`. `state` is saved as JSON, which keeps floats exactly."""
        start = time.monotonic()
        with atomic_folder(self.folder / f"{step:08}") as folder:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "tensors.safetensors")
            (folder / "state.json").write_text(json.dumps({"processes": self._processes, **state}), encoding="utf-8")
            for path in folder.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        for old in self._all()[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(old)
        self._next = time.monotonic() + max(MIN_SECONDS, (time.monotonic() - start) / MAX_TIME_SHARE)

    def newest(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Return the tensors (on the CPU) and the state of the newest checkpoint that can be read, if there is one.

        Raise UserError if it was made by another number of processes, whose sums are rounded otherwise.
        """
        for left_over in self.folder.glob(".*.part"):
            shutil.rmtree(left_over, ignore_errors=True)
        for folder in reversed(self._all()):
            try:
                state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                processes = state.pop("processes")
                tensors = load_file(folder / "tensors.safetensors")
            except (OSError, ValueError, KeyError, SafetensorError):  # damaged by the disk: use the one before
                continue
            if processes != self._processes:
                raise UserError(
                    f"{self.folder}: expected checkpoints of processes: {self._processes}, got {processes}. Set "
                    "profiles.*.train.processes back in params.yaml, or remove the folder to start again."
                )
            return tensors, state
        return None

    def remove(self) -> None:
        """Remove the run's checkpoints once it has finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*") if path.is_dir())
