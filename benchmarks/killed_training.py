"""Kill the training of the committed run again and again, and see whether it ends with the committed bytes.

python -m benchmarks.killed_training [--kills 20] [--seed 0]

In a clone of this repository DVC runs the stage and is killed with SIGKILL, together with it, after a random time (it
may be before training starts); then it is started again, and so on. Every second kill hits the stage alone. After the
last kill it runs to its end.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from benchmarks.killing import clone_into, head, kill_after, left_over, repro, run_to_its_end, same_bytes
from howto.core.atomic import write_json

RESULT = Path(__file__).parent / "results" / "killed_training.json"
FILES = ("models/adapter/adapter_model.safetensors", "metrics/train.json", "metrics/train_loss.csv")
BEFORE = ("models/base", "data/prepared")
COMMAND = repro("train")


def main() -> None:
    """Run, kill, compare, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        clone = clone_into(Path(name), BEFORE)
        kills = []
        for number in range(arguments.kills):
            kills.append(kill_once(clone, chance, stage_alone=number % 2 == 1))
            print(kills[-1], flush=True)
        seconds = run_to_its_end(COMMAND, clone)
        same = same_bytes(clone, FILES)
        left = left_over(clone)
    result = {
        **head("killed_training"),
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
    killed = kill_after(seconds, COMMAND, "stages.train", clone, stage_alone=stage_alone)
    assert killed, "it ended before it was killed"
    found = sorted(int(path.name) for path in (clone / "models/checkpoints").glob("*/[0-9]*"))
    return {
        "after_seconds": round(seconds, 1),
        "killed": killed,
        "goes_on_from_step": found[-1] if found else 0,
        "adapter_there": (clone / "models/adapter").exists(),
    }


if __name__ == "__main__":
    main()
