"""Kill stages at random moments, and check that the next run ends with the bytes of the finished run in this folder.

python -m benchmarks.kills --stage train|infer|repro [--kills 20] [--seed 0]

A clone of HEAD gets the outputs of the finished run, except those of one stage. `dvc repro` starts this stage and is
killed after a random part of the stage's usual time. Nothing may be running 10 seconds later. Then `dvc repro` has to
complete, after `howto recover` if DVC refuses to start, and every output, metric and dvc.lock is compared.

- `train`, `infer`: SIGKILL to the stage or to DVC and the stage. Five kills in a row, each of a run that resumes.
- `repro`: any stage; SIGINT, SIGTERM or SIGKILL to DVC, to the stage, or to the process group. One kill a run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from benchmarks.prepare import cpu_name
from howto.core.atomic import write_json

DVC = subprocess.Popen[bytes] | subprocess.Popen[str]
ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
# Result file, stages, signals, targets, kills in a row.
KINDS = {
    "train": ("killed_training", ["train"], ["SIGKILL"], ["stage", "group"], 5),
    "infer": ("killed_inference", ["infer@adapter"], ["SIGKILL"], ["stage", "group"], 5),
    "repro": ("killed_repro", [], ["SIGINT", "SIGTERM", "SIGKILL"], ["dvc", "stage", "group"], 1),
}
PATIENCE = 10.0  # seconds until a process that is still alive counts as not stopped
POLL = 0.02  # seconds


def main() -> None:
    """Kill, complete, compare, and keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=KINDS, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    file, stages, signals, targets, in_a_row = KINDS[arguments.stage]
    chance = random.Random(arguments.seed)
    # A shell's background job ignores SIGINT, and so would DVC. A handler is not inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        clone = Clone(Path(name))
        while len(runs) * in_a_row < arguments.kills:
            stage = chance.choice(stages or list(clone.outputs))
            usual = clone.usual_seconds(stage)
            clone.reset(stage)
            kills = [
                clone.kill(stage, chance.choice(signals), chance.choice(targets), chance.uniform(0, usual))
                for _ in range(in_a_row)
            ]
            runs.append({"stage": stage, "kills": kills, **clone.complete(stage)})
            print(runs[-1], flush=True)
            right = [bool(run["same_bytes"]) and not run["left_over"] for run in runs]
            result = {**head("kills"), "dvc": version("dvc"), "runs_with_the_same_bytes": sum(right), "runs": runs}
            write_json(RESULTS / f"{file}.json", result)
    if not all(right) or any(kill["still_running"] for run in runs for kill in run["kills"]):
        sys.exit("some bytes differ, or something was left over or kept running")


class Clone:
    """A clone of this repository in which one stage is run again and again."""

    def __init__(self, folder: Path) -> None:
        """Make the clone in `folder`."""
        self.outputs = outputs(ROOT)
        self.digests = {path: digest(ROOT / path) for paths in self.outputs.values() for path in paths}
        self.folder = clone_into(folder, self.digests)
        self.environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(folder / "site")}
        self.seconds: dict[str, float] = {}

    def usual_seconds(self, stage: str) -> float:
        """Return how long DVC takes for the stage; run it the first time."""
        if stage not in self.seconds:
            self.reset(stage)
            start = time.monotonic()
            if not self.complete(stage)["same_bytes"]:
                sys.exit(f"{stage}: the bytes differ from those of the finished run without any kill")
            self.seconds[stage] = time.monotonic() - start
        return self.seconds[stage]

    def reset(self, stage: str) -> None:
        """Remove the outputs of the stage, and everything that DVC and earlier kills left."""
        self._call("git", "checkout", "--quiet", ".")
        left = [".dvc/cache", ".dvc/tmp", "models/checkpoints", *self.outputs[stage]]
        for path in (self.folder / name for name in left):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        copy(self.digests.keys() - self.outputs[stage], self.folder)

    def kill(self, stage: str, number: str, target: str, seconds: float) -> dict[str, object]:
        """Start the stage, and send the signal after so many seconds."""
        with self._start(stage) as dvc:
            until = time.monotonic() + seconds
            while dvc.poll() is None and (time.monotonic() < until or (target == "stage" and not stage_processes(dvc))):
                time.sleep(POLL)
            stages = stage_processes(dvc)
            family = psutil.Process(dvc.pid).children(recursive=True) if dvc.poll() is None else []
            hit = send(dvc, number, target)
            # SIGINT to DVC alone means nothing to it while a stage runs.
            patience = 3600 if (number, target) == ("SIGINT", "dvc") and stages else PATIENCE
            alive = end_of(dvc, family, patience)
        return {"signal": number, "target": target, "after_seconds": round(seconds, 1), "hit": hit,
                "still_running": alive}  # fmt: skip

    def complete(self, stage: str) -> dict[str, object]:
        """Run the stage to its end, and compare everything with the finished run."""
        recovered = ""
        with self._start(stage) as dvc:
            dvc.wait()
        if dvc.returncode:
            recovered = self._call(sys.executable, "-m", "howto", "recover")
            self._call("dvc", "repro", "--single-item", stage)
        changed = [path for path, content in self.digests.items() if digest(self.folder / path) != content]
        changed += self._call("git", "status", "--short").splitlines()
        return {"recovered": recovered, "same_bytes": not changed, "changed": changed,
                "left_over": left_over(self.folder)}  # fmt: skip

    def _start(self, stage: str) -> subprocess.Popen[bytes]:
        command = ["dvc", "repro", "--single-item", stage]
        nowhere = subprocess.DEVNULL
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=nowhere, stderr=nowhere, start_new_session=True
        )

    def _call(self, *command: str) -> str:
        return subprocess.run(
            command, check=True, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True
        ).stdout


def clone_into(folder: Path, paths: Iterable[str]) -> Path:
    """Return a clone of this repository in `folder`, with the finished run's outputs `paths`."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    copy(paths, clone)
    return clone


def copy(paths: Iterable[str], clone: Path) -> None:
    """Copy outputs of the finished run that the clone lacks."""
    for path in (path for path in paths if not (clone / path).exists()):
        if not (ROOT / path).exists():
            sys.exit(f"{path}: not there. Run `make run` first.")
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / path, clone / path) if (ROOT / path).is_dir() else shutil.copy(ROOT / path, clone / path)


def send(dvc: DVC, number: str, target: str) -> str:
    """Send a signal to DVC, to its stage or to the process group; return what was running."""
    stages = stage_processes(dvc)
    if dvc.poll() is not None:
        return "nothing, because DVC had ended"
    if target == "stage":
        for process in stages:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.Signals[number])
    else:
        (os.kill if target == "dvc" else os.killpg)(dvc.pid, signal.Signals[number])
    return "DVC and the stage" if stages else "DVC"


def end_of(dvc: DVC, family: list[psutil.Process], patience: float) -> list[str]:
    """Wait until DVC and the processes that it started have ended. Kill and return those that do not."""
    until = time.monotonic() + patience
    commands = []
    try:
        dvc.wait(patience)
    except subprocess.TimeoutExpired:
        dvc.kill()
        commands.append("dvc repro")
    for process in psutil.wait_procs(family, max(until - time.monotonic(), 0))[1]:
        with suppress(psutil.Error):
            commands.append(" ".join(process.cmdline()))
            process.kill()
    return commands


def stage_processes(dvc: DVC) -> list[psutil.Process]:
    """Return the processes of stages that DVC has started."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(dvc.pid).children(recursive=True):
            with suppress(psutil.Error):
                if process.cmdline()[1:2] == ["-m"] and process.cmdline()[2].startswith("stages."):
                    found.append(process)
    return found


def outputs(folder: Path) -> dict[str, list[str]]:
    """Return every output, metric and plot that dvc.yaml names, by stage."""
    found = {}
    entries = YAML(typ="safe").load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name, entry in entries.items():
        stage = entry.get("do", entry)
        paths = list(stage.get("outs", []))
        paths += [path for kind in ("metrics", "plots") for one in stage.get(kind, []) for path in one]
        for key in entry.get("foreach", [""]):
            found[f"{name}@{key}" if key else name] = [path.replace("${key}", key) for path in paths]
    return found


def digest(path: Path) -> str:
    """Return the sha256 of a file, or of all names and contents in a folder; nothing if it does not exist."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if not path.is_dir():
        return ""
    files = [f"{file.relative_to(path)} {digest(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def left_over(folder: Path) -> list[str]:
    """Return what a run that has ended must not leave: temporary files and checkpoints."""
    parts = [path for top in ("models", "data", "metrics", "log") for path in (folder / top).rglob("*.part")]
    found = [*parts, *folder.rglob("*.tmp"), *(folder / "models/checkpoints").glob("*")]
    return [str(path.relative_to(folder)) for path in found]


def head(module: str) -> dict[str, object]:
    """Return the first entries of every result."""
    return {
        "command": f"python -m benchmarks.{module} {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
    }


if __name__ == "__main__":
    main()
