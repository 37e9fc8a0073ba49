"""Start stages and DVC in the background, and wait until they reach a point."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.conftest import ENVIRONMENT, ROOT

T = TypeVar("T")


def start(folder: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    environment, pipe = {**ENVIRONMENT, **variables}, subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
    )


def start_stage(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a stage in a folder that has none of this project's code."""
    return start(folder, sys.executable, "-m", *arguments, PYTHONPATH=str(ROOT))


def wait_until(condition: Callable[[], T], process: subprocess.Popen[str]) -> T:
    """Wait until the condition holds, while the process runs; return its value."""
    until = time.monotonic() + 120
    while not (value := condition()):
        assert process.poll() is None and time.monotonic() < until, "it ended, or two minutes passed"
        time.sleep(0.005)
    return value


def newest_checkpoint(folder: Path) -> int:
    """Return the step of the newest checkpoint in `folder`; 0 if there is none."""
    return max((int(path.name) for path in folder.glob("models/checkpoints/*/[0-9]*")), default=0)


def resumed(folder: Path) -> bool:
    """Return whether the last training in `folder` computed fewer tokens than a whole run."""
    files = [folder / f"metrics/{name}.json" for name in ("train_speed", "train")]
    last, whole = (json.loads(file.read_text(encoding="utf-8"))["tokens"] for file in files)
    return bool(last < whole)
