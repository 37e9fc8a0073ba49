"""A stage of the committed run that is killed in a clone of this repository: what the benchmarks of it share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.prepare import cpu_name
from howto.core.hashing import sha256_of

ROOT = Path(__file__).parent.parent


def repro(stage: str) -> list[str]:
    """The command that runs a stage, whatever the cache may have."""
    return ["dvc", "repro", "--single-item", "--force", stage]


def clone_into(folder: Path, before: Iterable[str]) -> Path:
    """A clone of this repository in `folder`, with what the stage reads: the paths `before`."""
    if missing := [path for path in before if not (ROOT / path).exists()]:
        sys.exit(f"{', '.join(missing)}: not there yet; run `make run` first")
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    for path in before:
        shutil.copytree(ROOT / path, clone / path)
    return clone


def run_to_its_end(command: list[str], clone: Path) -> float:
    """Run the command; how long it took, in seconds."""
    start = time.monotonic()
    subprocess.run(command, cwd=clone, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


def kill_after(seconds: float, command: list[str], module: str, clone: Path, *, stage_alone: bool) -> str | None:
    """Start DVC, which runs the stage `module`, and kill with SIGKILL the stage alone, or both.

    Returns:
        Who was killed: both, too, where the stage had not been started yet. None: it ended before.
    """
    said = clone.with_name("said.txt")
    with (
        said.open("w", encoding="utf-8") as file,
        subprocess.Popen(command, cwd=clone, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True) as dvc,
    ):
        time.sleep(seconds)
        if dvc.poll() is not None:
            if dvc.returncode:
                sys.exit(f"it failed before it was killed:\n{said.read_text(encoding='utf-8')}")
            return None
        stages = [p for p in psutil.Process(dvc.pid).children(recursive=True) if _runs(p, module)]
        alone = stage_alone and bool(stages)
        if alone:
            for stage in stages:
                with suppress(psutil.NoSuchProcess):  # it ended by itself
                    stage.kill()
        else:
            os.killpg(dvc.pid, signal.SIGKILL)
        dvc.wait()
    psutil.wait_procs(stages, timeout=10)
    if dvc.returncode == 0:
        return None
    return "the stage" if alone else "DVC and the stage"


def _runs(process: psutil.Process, module: str) -> bool:
    try:
        return module in " ".join(process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return False


def same_bytes(clone: Path, files: Iterable[str]) -> dict[str, bool]:
    """Whether each file is the committed run's."""
    return {path: sha256_of(clone / path) == sha256_of(ROOT / path) for path in files}


def left_over(clone: Path) -> list[str]:
    """What a run that ended should not leave: half of a file, or something to go on from."""
    parts = [path for folder in ("models", "data", "metrics") for path in (clone / folder).rglob("*.part")]
    return [str(path) for path in [*parts, *(clone / "models/checkpoints").glob("*")]]


def head(module: str) -> dict[str, object]:
    """What every result begins with."""
    return {
        "command": f"python -m benchmarks.{module} {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
    }
