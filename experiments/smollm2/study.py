"""Choose the settings of the default profile on its validation rows, and measure what all rows and more epochs give.

python -m experiments.smollm2.study                 train what trials.csv lacks; no test row is read
python -m experiments.smollm2.study --all-rows N    the whole pipeline on all rows for N epochs -> all_rows.json

Run `make run` first: the trials read its rows and its base model. Stopped, the study resumes with the next trial.

writes:  trials.csv, all_rows.json
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import NamedTuple

from experiments.pipeline import params_with, run_in
from howto.params.file import read_params
from howto.params.machine import Machine, ProfileMachine
from howto.params.train import ProfileTrain, Train
from howto.rows import Row, read_rows
from howto.stop import stops_cleanly
from howto.whole import whole_file, write_json

TRIALS, ALL_ROWS = Path(__file__).with_name("trials.csv"), Path(__file__).with_name("all_rows.json")
PREPARED, BASE = Path("data/prepared"), Path("models/base")
WORK = Path("models/checkpoints/study_smollm2")


class Trial(NamedTuple):
    """One setting: optimizer steps, rows a step, and the peak learning rate."""

    steps: int
    batch_size: int
    learning_rate: float


# 240 rows in all: what ten minutes on 2 cores leave for training.
PLANNED = (
    Trial(60, 4, 2e-3),
    Trial(60, 4, 4e-3),
    Trial(60, 4, 1e-3),
    Trial(30, 8, 4e-3),
)


@stops_cleanly
def main() -> None:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all-rows", metavar="EPOCHS", type=int, help="train on all rows for so many epochs")
    arguments = parser.parse_args()
    if arguments.all_rows:
        train = "profiles.smollm2.train"
        changes = {f"{train}.steps": None, f"{train}.epochs": arguments.all_rows}
        changes["profiles.smollm2.data.source"] = str(Path("data/howto").resolve())
        write_json(ALL_ROWS, run_in(WORK, params_with(changes)))
        print(f"study: {ALL_ROWS}")
        return
    done = read_trials()
    for trial in PLANNED:
        if trial not in done:
            done[trial] = run(trial)
            write_trials(done)
    print(f"study: {len(done)} trials -> {TRIALS}")


def run(trial: Trial) -> tuple[float, int, float]:
    """Train with the settings of a trial and return validation loss (nats a response token), tokens and seconds."""
    params = read_params()

    from howto.torch_setup import set_up_torch

    device = set_up_torch(params.section(Machine), params.section(ProfileMachine))

    import torch

    from howto.adapter import add_adapter
    from howto.base import load_base, load_tokenizer
    from howto.batches import encode
    from howto.engine import Engine
    from howto.training import Trainer

    shared = params.section(Train)
    profile = params.section(ProfileTrain).model_copy(
        update={**trial._asdict(), "epochs": None, "micro_batch_size": trial.batch_size}
    )
    tokenizer = load_tokenizer(BASE)
    train, validation = (
        encode(tokenizer, read_rows(PREPARED / f"{name}.jsonl", Row), shared.max_length, shorten=True).examples
        for name in ("train", "validation")
    )
    torch.manual_seed(shared.seed)
    model = add_adapter(load_base(BASE, "float32", device), shared.lora, BASE)
    engine = Engine(model, train, shared, profile, tokenizer.eos_token_id)
    start = time.monotonic()
    curve = Trainer(engine, train, validation, shared, profile).run()
    return curve.kept_loss or float("nan"), curve.tokens, round(time.monotonic() - start, 1)


def read_trials() -> dict[Trial, tuple[float, int, float]]:
    """Return what trials.csv holds."""
    if not TRIALS.is_file():
        return {}
    with TRIALS.open(encoding="utf-8", newline="") as file:
        return {
            Trial(int(line["steps"]), int(line["batch_size"]), float(line["learning_rate"])): (
                float(line["validation_loss"]),
                int(line["tokens"]),
                float(line["seconds"]),
            )
            for line in csv.DictReader(file)
        }


def write_trials(done: dict[Trial, tuple[float, int, float]]) -> None:
    """Write trials.csv, the lowest validation loss first."""
    with whole_file(TRIALS) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Trial._fields, "validation_loss", "tokens", "seconds"])
        writer.writerows((*trial, *found) for trial, found in sorted(done.items(), key=lambda item: item[1]))


if __name__ == "__main__":
    main()
