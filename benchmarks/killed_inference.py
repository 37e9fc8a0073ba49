"""Kill the inference of the committed run again and again, and see whether it ends with the committed bytes.

python -m benchmarks.killed_inference [--kills 20] [--seed 0]

In a clone of this repository DVC runs infer@adapter to its end, which says how long that takes, and then again and
again: it is killed with SIGKILL, together with the stage, after a random part of that time (it may be before the first
answer). Every second kill hits the stage alone. What is left to do gets less from kill to kill, so that a run may end
before it is killed: its bytes are compared, and the next one begins anew. After the last kill it runs to its end.
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

RESULT = Path(__file__).parent / "results" / "killed_inference.json"
FILE = "data/predictions/adapter.jsonl"
BEFORE = ("models/base", "models/adapter", "data/prepared")
COMMAND = repro("infer@adapter")
EARLIEST = 1.0  # seconds


def main() -> None:
    """Run, kill, compare, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        clone = clone_into(Path(name), BEFORE)
        whole_seconds = run_to_its_end(COMMAND, clone)
        kills: list[dict[str, object]] = []
        ended, same, left = 0, [is_the_same(clone)], left_over(clone)
        while len(kills) < arguments.kills:
            seconds = chance.uniform(EARLIEST, whole_seconds)
            killed = kill_after(seconds, COMMAND, "stages.infer", clone, stage_alone=len(kills) % 2 == 1)
            if killed is None:
                ended += 1
                same.append(is_the_same(clone))
                left += left_over(clone)
                continue
            kills.append(
                {
                    "after_seconds": round(seconds, 1),
                    "killed": killed,
                    "goes_on_from_answer": answers(clone),
                    "predictions_there": (clone / FILE).exists(),  # of a run that DVC had yet to note
                }
            )
            if (clone / FILE).exists():
                same.append(is_the_same(clone))
            print(kills[-1], flush=True)
        last_seconds = run_to_its_end(COMMAND, clone)
        same.append(is_the_same(clone))
        left += left_over(clone)
    result = {
        **head("killed_inference"),
        "whole_run_seconds": round(whole_seconds, 1),
        "kills": kills,
        "ended_before_a_kill": ended,
        "last_run_seconds": round(last_seconds, 1),
        "predictions_written": len(same),
        "with_the_committed_bytes": sum(same),
        "left_over": left,
    }
    print(json.dumps(result, indent=2))
    write_json(RESULT, result)
    if not all(same) or left:
        sys.exit("not the same bytes, or something was left")


def is_the_same(clone: Path) -> bool:
    """Whether the predictions are the committed run's."""
    return same_bytes(clone, [FILE])[FILE]


def answers(clone: Path) -> int:
    """How many whole answers the next run takes up."""
    return sum(path.read_bytes().count(b"\n") for path in (clone / "models/checkpoints").glob("*/answers.jsonl"))


if __name__ == "__main__":
    main()
