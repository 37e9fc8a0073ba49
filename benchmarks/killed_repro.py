"""Kill `dvc repro` at random moments of a whole run, and see whether the next one ends with an undisturbed run's bytes.

python -m benchmarks.killed_repro [--kills 30] [--between 9] [--seed 0] [--small] [--go-on]

In a clone of this repository every stage is run once, from nothing, and the clone is kept as it was before each. Each
trial begins with the clone as it was before one stage, and with a cache that knows all but this stage. `dvc repro`
starts and is sent SIGINT, SIGTERM or SIGKILL: DVC alone, the stage's process alone, or the whole process group. The
first trials take the stages in turn; then the moment is drawn from the time of the whole run. `--between` more aim at
what DVC does when a stage has ended: hashing, moving to the cache, writing dvc.lock.

Then nothing may go on (10 seconds), and `dvc repro` has to complete, after `howto recover` where it does not by
itself. The later stages come from the cache only if the killed stage made the same bytes; every output is compared.
`--small` takes the tests' tiny profile. `--go-on` keeps the trials of the result that is there, and begins after them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from benchmarks.killing import head
from benchmarks.repro_trial import SIGNALS, STAGES, TARGETS, Aim, Undisturbed, trial
from howto.core.atomic import write_json

RESULT = Path(__file__).parent / "results" / "killed_repro.json"
TRIES = 20  # of one aim, until it hits something


def main() -> None:
    """Run, kill, compare, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--between", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--go-on", action="store_true")
    parser.add_argument("--result", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        whole = Undisturbed(Path(name), small=arguments.small)
        print({stage: round(times.seconds, 1) for stage, times in whole.times.items()}, flush=True)
        result = {
            **head("killed_repro"),
            "dvc": version("dvc"),
            "undisturbed_seconds": {stage: round(times.seconds, 1) for stage, times in whole.times.items()},
        }
        trials = json.loads(arguments.result.read_text(encoding="utf-8"))["trials"] if arguments.go_on else []
        all_aims = aims(whole, random.Random(arguments.seed), arguments.kills, arguments.between)
        for aim in itertools.islice(all_aims, len(trials), None):
            trials.append(hit(whole, aim))
            print(json.dumps(trials[-1]), flush=True)
            write_json(arguments.result, {**result, **summary(trials), "trials": trials})
    if not all(one["same_bytes"] and not one["left_over"] and not one["goes_on"] for one in trials):
        sys.exit("not the same bytes, or something was left or goes on")


def hit(whole: Undisturbed, aim: Aim) -> dict[str, object]:
    """A trial that hits something: earlier, if DVC has ended by then, or no stage is at work.

    How fast the machine is changes; the moment is then the same share of what the run took this time.
    """
    share = aim.seconds / whole.times[aim.stage].seconds
    for _ in range(TRIES):
        found = trial(whole, aim)
        if not str(found["hit"]).startswith("nothing"):
            return found
        share *= 0.9
        seconds = 0.7 * aim.seconds
        if not aim.after_its_end and isinstance(took := found["until_then_seconds"], float):
            whole.times[aim.stage] = replace(whole.times[aim.stage], seconds=took)
            seconds = share * took
        aim = replace(aim, seconds=seconds)
    sys.exit(f"{aim}: nothing was hit in {TRIES} tries")


def aims(whole: Undisturbed, chance: random.Random, kills: int, between: int) -> Iterator[Aim]:
    """What is hit, with what, and when; all nine combinations in turn, in a random order."""
    combinations = [
        pair for _ in range(0, kills + between, 9) for pair in shuffled(chance, itertools.product(SIGNALS, TARGETS))
    ]
    for number, (signal, target) in enumerate(combinations[: kills + between]):
        if number < kills:
            stage = STAGES[number] if number < len(STAGES) else chance.choices(STAGES, whole.seconds())[0]
            yield Aim(stage, signal, target, chance.uniform(0, whole.times[stage].seconds))
        else:
            stage = STAGES[number % len(STAGES)]
            at_work = "group" if target == "stage" else target  # between stages none is
            yield Aim(stage, signal, at_work, chance.uniform(0, whole.times[stage].seconds_after), after_its_end=True)


def shuffled(chance: random.Random, pairs: itertools.product[tuple[str, str]]) -> list[tuple[str, str]]:
    """All of them in a random order."""
    found = list(pairs)
    chance.shuffle(found)
    return found


def summary(trials: list[dict[str, object]]) -> dict[str, object]:
    """What the trials come to."""
    return {
        "kills": len(trials),
        "stages_hit": sorted({str(one["stage"]) for one in trials}),
        "combinations": len({(one["signal"], one["target"]) for one in trials}),
        "something_went_on": sum(bool(one["goes_on"]) for one in trials),
        "slowest_to_end_seconds": max(
            (one["seconds_until_all_ended"] for one in trials if isinstance(one["seconds_until_all_ended"], float)),
            default=None,
        ),
        "dvc_repro_completed_by_itself": sum(one["next_repro"] == "completed" for one in trials),
        "completed_after_heal": sum(one["next_repro"] == "completed after heal" for one in trials),
        "same_bytes": sum(bool(one["same_bytes"]) for one in trials),
    }


if __name__ == "__main__":
    main()
