"""Choose the settings of the default profile on its validation rows, and measure what all rows and more epochs give.

python -m experiments.smollm2.study [--precision bfloat16]   train and answer what trials.csv lacks; reads no test row
python -m experiments.smollm2.study --all-rows N [...]       all rows for N epochs -> all_rows.json

Run `make run` first: the trials read its rows and its base model. Stopped, the study resumes with the next trial.
With bfloat16 training is in that precision and with all instructions of the CPU, which is faster where it has
avx512_bf16 or amx_bf16 (see lscpu). The trials answer in float32 all the same.

writes:  trials.csv, all_rows.json
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from experiments.pipeline import in_precision, params_with, run_in
from howto.core.atomic import atomic_file, write_json
from howto.core.errors import reports_errors
from howto.core.schema import Row, read_rows
from howto.core.step_lists import is_well_numbered
from howto.evaluation.rouge import Rouge
from howto.inference.config import Infer, ProfileInfer
from howto.modeling.config import Machine, ProfileMachine
from howto.params import read_params
from howto.training.config import ProfileTrain, Train

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).parent
TRIALS, ALL_ROWS = HERE / "trials.csv", HERE / "all_rows.json"
PREPARED, BASE = Path("data/prepared"), Path("models/base")
WORK = Path("models/checkpoints/study_smollm2")


class Trial(NamedTuple):
    """One setting. Of the training rows, in the order of their ids, the first `rows` are used; 0: the base model."""

    rows: int
    steps: int = 0
    batch_size: int = 0
    learning_rate: float = 0.0
    plus_ratio: float = 1.0


class Trained(NamedTuple):
    """What training cost and gave; the loss is in nats a response token."""

    validation_loss: float
    tokens: int
    seconds: float


class Answered(NamedTuple):
    """Greedy answers to the validation rows; `words` is the ratio of their words to those of the references."""

    rougeL: float
    ended: float
    well_numbered: float
    words: float


# Each with the values of infer.no_repeat_ngram_size that it answers with; 0: null.
PLANNED = {
    Trial(0): (0, 5),
    Trial(144, 54, 8, 5e-4): (0, 4, 7),
    Trial(540, 54, 8, 1e-3): (0, 5),
    Trial(540, 54, 8, 3e-3): (0, 5),
    Trial(540, 108, 4, 4e-3): (5,),
    Trial(540, 108, 4, 2e-3, 4.0): (5,),
    Trial(540, 80, 4, 2e-3): (5,),
    Trial(540, 80, 4, 3e-3): (3, 4, 5),
}


@reports_errors
def main() -> None:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32", help="of the base in training"
    )
    parser.add_argument("--all-rows", metavar="EPOCHS", type=int, help="train on all rows for so many epochs")
    arguments = parser.parse_args()
    if arguments.all_rows:
        train = "profiles.smollm2.train"
        changes = {f"{train}.steps": None, f"{train}.epochs": arguments.all_rows}
        changes["profiles.smollm2.data.source"] = str(Path("data/howto").resolve())
        found = run_in(WORK, params_with(changes | in_precision("profiles.smollm2", arguments.precision)))
        write_json(ALL_ROWS, {"epochs": arguments.all_rows, "precision": arguments.precision, **found})
        print(f"study: {ALL_ROWS}")
        return
    lines = read_lines(TRIALS)
    params = read_params()

    from howto.modeling.torch_setup import set_up_torch

    own = {"instruction_set": "native"} if arguments.precision == "bfloat16" else {}
    machine = params.section(Machine).model_copy(update=own)
    device = set_up_torch(machine, params.section(ProfileMachine))
    for trial, sizes in PLANNED.items():
        missing = [size for size in sizes if key_of(trial, size) not in lines]
        if missing:
            folder = WORK / "-".join(map(str, trial)) if trial.rows else None
            trained = train_adapter(trial, arguments.precision, folder, device) if folder else None
            for size in missing:
                lines[key_of(trial, size)] = trained, answer(folder, size, device)
            write_lines(TRIALS, lines)
    print(f"study: {len(PLANNED)} trials -> {TRIALS}")


def train_adapter(trial: Trial, precision: str, folder: Path, device: torch.device) -> Trained:
    """Train with the settings of a trial and write the adapter into `folder`."""
    import torch

    from howto.modeling.collate import encode
    from howto.modeling.loading import load_base, load_chat
    from howto.training.forward import Engine
    from howto.training.lora import add_adapter
    from howto.training.trainer import Trainer

    params = read_params()
    shared = params.section(Train)
    ratio = None if trial.plus_ratio == 1 else trial.plus_ratio
    shared = shared.model_copy(update={"lora": shared.lora.model_copy(update={"plus_ratio": ratio})})
    own = {key: value for key, value in trial._asdict().items() if key in ProfileTrain.model_fields}
    profile = params.section(ProfileTrain).model_copy(
        update={**own, "epochs": None, "micro_batch_size": trial.batch_size}
    )
    chat = load_chat(BASE)
    rows = sorted(read_rows(PREPARED / "train.jsonl", Row), key=lambda row: row.id)[: trial.rows]
    train, validation = (
        encode(chat, part, shared.max_length, shorten=True)
        for part in (rows, read_rows(PREPARED / "validation.jsonl", Row))
    )
    torch.manual_seed(shared.seed)
    model = add_adapter(load_base(BASE, precision, device), shared.lora, BASE)
    engine = Engine(model, train, shared, profile, chat.end)
    start = time.monotonic()
    curve = Trainer(engine, train, validation, shared, profile).run()
    seconds = round(time.monotonic() - start, 1)
    model.save_pretrained(str(folder))
    return Trained(curve.kept_loss or float("nan"), curve.tokens, seconds)


def answer(adapter: Path | None, ngram: int, device: torch.device) -> Answered:
    """Score the answers to the validation rows of the base model, with the adapter if there is one."""
    from howto.inference.decoder import Request
    from howto.inference.generator import Generator

    params = read_params()
    profile = params.section(ProfileInfer)
    decoding = profile.decoding(params.section(Infer)).model_copy(
        update={"no_repeat_ngram_size": ngram or None, "repetition_penalty": 1.0}
    )
    rows = read_rows(PREPARED / "validation.jsonl", Row)
    generator = Generator.load(
        BASE, adapter, decoding, batch_size=profile.batch_size, precision="float32", device=device
    )
    requests = [Request(generator.encode(row)) for row in rows]
    found = {answer.request.row.id: answer for answer in generator.generate(requests, progress="answer")}
    rouge = Rouge(use_stemmer=True)
    scores = [rouge.rouge_l(rouge.tokens(row.output), rouge.tokens(found[row.id].text)) for row in rows]
    written, wanted = (
        sum(len(text.split()) for text in texts)
        for texts in ([one.text for one in found.values()], [row.output for row in rows])
    )
    return Answered(
        mean([score.fmeasure for score in scores]),
        mean([one.stop == "eos" for one in found.values()]),
        mean([is_well_numbered(one.text) for one in found.values()]),
        round(written / wanted, 3),
    )


def mean(values: Sequence[float]) -> float:
    """Return the mean to four places."""
    return round(sum(values) / len(values), 4)


Key = tuple[str, ...]
Lines = dict[Key, tuple[Trained | None, Answered]]


def key_of(trial: Trial, ngram: int) -> Key:
    """Return what tells a line of trials.csv from the others."""
    return (*(f"{value:g}" for value in trial), str(ngram))


def read_lines(path: Path) -> Lines:
    """Return what trials.csv holds."""
    if not path.is_file():
        return {}
    width = len(Trial._fields) + 1
    with path.open(encoding="utf-8", newline="") as file:
        _, *lines = csv.reader(file)
    return {
        tuple(line[:width]): (
            Trained(float(line[width]), int(line[width + 1]), float(line[width + 2])) if line[width] else None,
            Answered(*map(float, line[width + 3 :])),
        )
        for line in lines
    }


def write_lines(path: Path, lines: Lines) -> None:
    """Write trials.csv."""
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Trial._fields, "no_repeat_ngram_size", *Trained._fields, *Answered._fields])
        for key, (trained, answered) in lines.items():
            writer.writerow([*key, *(trained or [""] * len(Trained._fields)), *answered])


if __name__ == "__main__":
    main()
