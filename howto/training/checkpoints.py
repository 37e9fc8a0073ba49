"""Checkpoints of a run: whole or absent, the last two kept, found again by a run with the same inputs and no other.

They lie outside of what DVC knows: it removes a stage's outputs before the stage runs, checkpoints among them.
"""

from __future__ import annotations

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

KEPT = 2
RUNS = 3  # folders of runs that did not end, this one among them
PROCESSES = "processes"  # how many made it
SHARE = 0.01  # of the time, at most, goes into checkpoints


class Checkpoints:
    """The checkpoints of the run named `key`, in a folder of its own below `folder`."""

    def __init__(
        self, folder: Path, key: str, *, seconds: float = 1.0, writes: bool = True, processes: int = 1
    ) -> None:
        """At least `seconds` pass between two of them, and more where saving takes long.

        Of several `processes` that share the work one `writes`, and reads.
        """
        self.folder = folder / key
        self._processes = processes
        self._writes = writes
        self._seconds = seconds
        self._next = time.monotonic() + seconds
        if not writes:
            return
        others = sorted(
            (path for path in folder.glob("[0-9a-f]*") if path != self.folder), key=lambda p: p.stat().st_mtime
        )
        for path in others[: -(RUNS - 1)]:
            shutil.rmtree(path, ignore_errors=True)

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self._writes and time.monotonic() >= self._next

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Save what is needed to go on after `step`. `state` goes into JSON: floats come back as they were."""
        start = time.monotonic()
        with atomic_folder(self.folder / f"{step:08}") as folder:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "tensors.safetensors")
            (folder / "state.json").write_text(json.dumps({PROCESSES: self._processes, **state}), encoding="utf-8")
            for path in folder.iterdir():
                _to_disk(path)
        for old in self._whole()[:-KEPT]:
            shutil.rmtree(old)
        self._next = time.monotonic() + max(self._seconds, (time.monotonic() - start) / SHARE)

    def newest(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The tensors (on the CPU) and the state of the newest one that can be read; None if there is none.

        Raises:
            UserError: it was made by another number of processes, which sum otherwise.
        """
        if self._writes:
            for left_over in self.folder.glob(".*.part"):
                shutil.rmtree(left_over, ignore_errors=True)
        for folder in reversed(self._whole()):
            try:
                state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
                made_by = state.pop(PROCESSES)
                tensors = load_file(folder / "tensors.safetensors")
            except (OSError, ValueError, KeyError, SafetensorError):  # the disk lost it: the one before will do
                continue
            if made_by != self._processes:
                raise UserError(
                    f"{self.folder}: checkpoints of this run, made with processes: {made_by}, and now there are "
                    f"{self._processes}; set profiles.*.train.processes back in params.yaml, or remove the folder "
                    "to begin anew"
                )
            return tensors, state
        return None

    def remove(self) -> None:
        """Remove the run's checkpoints: it has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _whole(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*") if path.is_dir())


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
