"""Let the base model and the fine-tuned one write step-by-step instructions.

As a stage (`--stage base`, `--stage adapter`):
  reads:   data/prepared/test.jsonl, models/base/ (and models/adapter/)
  params:  infer, machine, profiles.<profile>.infer, profiles.<profile>.machine
  writes:  data/predictions/base.jsonl, or data/predictions/adapter.jsonl
Killed on the way, it goes on from models/checkpoints/ when it is run again with the same inputs.

For a person:
  python -m stages.infer "How do I repot a fern?"
  python -m stages.infer "How do I repot a fern?" --compare
  python -m stages.infer                                              (a prompt; an empty line ends it)
  python -m stages.infer --input intents.txt --output answers.jsonl   (.txt, .jsonl or .csv; - for standard input)
"""

from __future__ import annotations

import argparse
import importlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from howto.params.file import Params, read_params
from howto.params.infer import Infer, ProfileInfer
from howto.params.machine import Machine, ProfileMachine
from howto.rows import Prediction, Row, read_rows, write_rows
from howto.stop import stops_cleanly

if TYPE_CHECKING:
    from howto.answering import Answering

BASE = Path("models/base")
ADAPTER = Path("models/adapter")
TEST = Path("data/prepared/test.jsonl")
PREDICTIONS = Path("data/predictions")
CHECKPOINTS = Path("models/checkpoints")
OTHERS = 2  # journals of runs with other inputs, which did not end, that are kept: such a run may yet go on


@stops_cleanly
def main() -> None:
    """Run the stage, or answer a person."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("intent", nargs="?", help="what you want to do")
    parser.add_argument("--context", metavar="TEXT", default="", help="a text that the answer is to be drawn from")
    parser.add_argument("--input", metavar="FILE", help="a file of intents: .txt, .jsonl or .csv; - for standard input")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where the answers go, as JSONL (else: printed)")
    parser.add_argument("--model", choices=("base", "adapter"), default="adapter", help="who answers (%(default)s)")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path, default=ADAPTER, help="another PEFT folder")
    parser.add_argument("--compare", action="store_true", help="let both models answer, side by side")
    parser.add_argument("--stage", choices=("base", "adapter"), help="answer every test row, as `dvc repro` does")
    arguments = parser.parse_args()
    if sum(value is not None for value in (arguments.intent, arguments.input, arguments.stage)) > 1:
        parser.error("give an intent, or --input FILE, or --stage")
    if arguments.output and arguments.input is None:
        parser.error("--output goes with --input")
    if arguments.context and arguments.intent is None:
        parser.error("--context goes with an intent")
    if arguments.compare and (arguments.input is not None or arguments.model != "adapter"):
        parser.error("--compare goes with an intent, or with the prompt, and without --model")
    if arguments.stage and (arguments.compare or arguments.adapter != ADAPTER or arguments.model != "adapter"):
        parser.error("--stage stands alone")
    params = read_params()
    if arguments.stage:
        predict(params, arguments.stage)
    else:
        # Imported by name: how a person is answered changes nothing that the stage makes.
        importlib.import_module("howto.asking").ask(params, arguments, BASE)


def predict(params: Params, model: str) -> None:
    """Write the model's answers to every test row, in the order of the rows, and of the seeds within a row.

    Where a prompt is longer than the model can read, or than params allow, its context is shortened; an intent that
    is too long by itself gets an empty answer, which scores 0.
    """
    rows = read_rows(TEST, Row)
    shared, profile = params.section(Infer), params.section(ProfileInfer)
    decoding = profile.decoding(shared)

    from howto.torch_setup import set_up_torch, versions

    machine = params.section(ProfileMachine)
    device = set_up_torch(params.section(Machine), machine)

    from howto.answering import Answering
    from howto.inputs import Inputs

    adapter = ADAPTER if model == "adapter" else None
    inputs = Inputs([TEST, BASE, *filter(None, [adapter])], params, [Infer, ProfileInfer, Machine, ProfileMachine])
    folder = CHECKPOINTS / f"infer-{model}-{inputs.key(model=model, **versions(device))}"
    answering = Answering(
        BASE, adapter, decoding, batch_size=profile.batch_size, precision=machine.precision, device=device
    )
    predictions = answer(answering, rows, decoding.seeds, folder / "answers.jsonl", f"infer {model}")
    inputs.check()
    write_rows(PREDICTIONS / f"{model}.jsonl", predictions)
    shutil.rmtree(folder, ignore_errors=True)
    others = sorted(CHECKPOINTS.glob(f"infer-{model}-*"), key=lambda path: path.stat().st_mtime)
    for old in others[:-OTHERS]:
        shutil.rmtree(old, ignore_errors=True)
    ended = sum(prediction.stop == "eos" for prediction in predictions)
    print(f"infer: {len(predictions)} answers by {model}, {ended} ended by the model -> {PREDICTIONS / model}.jsonl")


def answer(answering: Answering, rows: list[Row], seeds: list[int], ready: Path, bar: str) -> list[Prediction]:
    """The predictions for all rows and seeds; those that are in the journal `ready` are not made again."""
    from howto.journal import journal

    inputs = answering.fit(rows)
    references = answering.references(rows, inputs)
    with journal(ready, Prediction) as answers:
        found = {(prediction.id, prediction.seed): prediction for prediction in answers.found}
        wanted = [(number, seed) for number, row in enumerate(rows) for seed in seeds if (row.id, seed) not in found]
        for number, seed, given in answering.answers(rows, inputs, wanted, bar=bar):
            tokens, log_probability = references[number]
            prediction = Prediction(
                id=rows[number].id,
                seed=seed,
                text=given.text,
                prompt_tokens=given.prompt_tokens,
                new_tokens=given.new_tokens,
                stop=given.stop,
                reference_tokens=tokens,
                reference_log_probability=log_probability,
            )
            found[prediction.id, seed] = prediction
            answers.add(prediction)
    if shortened := sum(text is not None and text != row.input for row, text in zip(rows, inputs, strict=True)):
        print(f"infer: {shortened} contexts were shortened to prompts of {answering.longest_prompt} tokens")
    return [found[row.id, seed] for row in rows for seed in seeds]


if __name__ == "__main__":
    main()
