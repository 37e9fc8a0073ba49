"""Kill the training of the committed run again and again, and see whether it ends with the committed bytes.

python -m benchmarks.killed_training [--kills 20] [--seed 0]

In a clone of this repository DVC runs the stage and is killed with SIGKILL, together with it, after a random time (it
may be before training starts); then it is started again, and so on. Every second kill hits the stage alone. After the
last kill it runs to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.prepare import cpu_name
from howto.checksum import sha256_of
from howto.whole import write_json

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "killed_training.json"
FILES = ("models/adapter/adapter_model.safetensors", "metrics/train.json", "metrics/train_loss.csv")
BEFORE = ("models/base", "data/prepared")
COMMAND = ["dvc", "repro", "--single-item", "--force", "train"]  # whatever the cache may have


def main() -> None:
    """Run, kill, compare, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for path in BEFORE:
            shutil.copytree(ROOT / path, clone / path)
        kills = []
        for number in range(arguments.kills):
            kills.append(kill_once(clone, chance, stage_alone=number % 2 == 1))
            print(kills[-1], flush=True)
        start = time.monotonic()
        subprocess.run(COMMAND, cwd=clone, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        same = {path: sha256_of(clone / path) == sha256_of(ROOT / path) for path in FILES}
        left = [str(path) for path in (clone / "models").rglob("*.part")] + [
            str(path) for path in (clone / "models/checkpoints").glob("*")
        ]
    result = {
        "command": f"python -m benchmarks.killed_training {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "kills": kills,
        "last_run_seconds": round(seconds, 1),
        "same_bytes_as_without_kills": same,
        "left_over": left,
    }
    print(json.dumps(result, indent=2))
    write_json(RESULT, result)
    if not all(same.values()) or left:
        sys.exit("not the same bytes, or something was left")


def kill_once(clone: Path, chance: random.Random, *, stage_alone: bool) -> dict[str, object]:
    """Start the stage and kill it at a random moment."""
    seconds = chance.uniform(1.0, 12.0)
    with subprocess.Popen(
        COMMAND, cwd=clone, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as dvc:
        time.sleep(seconds)
        assert dvc.poll() is None, "it ended before it was killed"
        stages = [
            p for p in psutil.Process(dvc.pid).children(recursive=True) if "stages.train" in " ".join(p.cmdline())
        ]
        if stage_alone and stages:
            for stage in stages:
                stage.kill()
        else:
            os.killpg(dvc.pid, signal.SIGKILL)
        dvc.wait()
    psutil.wait_procs(stages, timeout=10)
    found = sorted(int(path.name) for path in (clone / "models/checkpoints").glob("*/[0-9]*"))
    return {
        "after_seconds": round(seconds, 1),
        "killed": "the stage" if stage_alone and stages else "DVC and the stage",
        "goes_on_from_step": found[-1] if found else 0,
        "adapter_there": (clone / "models/adapter").exists(),
    }


if __name__ == "__main__":
    main()
