"""Let the base model and the fine-tuned one write step-by-step instructions.

As a stage (`--stage base`, `--stage adapter`):
  reads:   data/prepared/test.jsonl, models/base/ (and models/adapter/)
  params:  infer, machine, profiles.<profile>.infer, profiles.<profile>.machine
  writes:  data/predictions/base.jsonl, or data/predictions/adapter.jsonl

For a person:
  python -m stages.infer "How do I repot a fern?"
  python -m stages.infer --input intents.txt --output answers.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from howto.params.file import Params, read_params
from howto.params.infer import Infer, ProfileInfer
from howto.params.machine import Machine, ProfileMachine
from howto.rows import Prediction, Row, read_rows, write_rows
from howto.stop import Stop, stops_cleanly
from howto.whole import whole_file

if TYPE_CHECKING:
    from howto.generation import Answer

BASE = Path("models/base")
ADAPTER = Path("models/adapter")
TEST = Path("data/prepared/test.jsonl")
PREDICTIONS = Path("data/predictions")


@stops_cleanly
def main() -> None:
    """Run the stage, or answer a person."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("intent", nargs="?", help="what you want to do")
    parser.add_argument("--input", metavar="FILE", help="a text file with an intent a line; - for standard input")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where the answers go, as JSONL (else: printed)")
    parser.add_argument("--model", choices=("base", "adapter"), default="adapter", help="who answers (%(default)s)")
    parser.add_argument("--stage", choices=("base", "adapter"), help="answer every test row, as `dvc repro` does")
    arguments = parser.parse_args()
    if sum(map(bool, (arguments.intent is not None, arguments.input, arguments.stage))) != 1:
        parser.error("give an intent, or --input FILE, or --stage")
    if arguments.output and not arguments.input:
        parser.error("--output goes with --input")
    params = read_params()
    if arguments.stage:
        predict(params, arguments.stage)
    else:
        intents = [arguments.intent] if arguments.intent is not None else read_intents(arguments.input)
        answer_person(params, arguments.model, intents, arguments.output)


def predict(params: Params, model: str) -> None:
    """Write the model's answer to every test row, in the order of the rows."""
    rows = read_rows(TEST, Row)
    answers, lengths = answer(params, model, [(row.instruction, row.input) for row in rows])
    predictions = [
        Prediction(id=row.id, text=a.text, prompt_tokens=length, new_tokens=a.new_tokens, stop=a.stop)
        for row, a, length in zip(rows, answers, lengths, strict=True)
    ]
    write_rows(PREDICTIONS / f"{model}.jsonl", predictions)
    ended = sum(prediction.stop == "eos" for prediction in predictions)
    print(f"infer: {len(rows)} answers by {model}, {ended} ended by the model -> {PREDICTIONS / model}.jsonl")


def answer_person(params: Params, model: str, intents: list[str], output: Path | None) -> None:
    """Print the answers, or write them to `output`."""
    from howto.params.prepare import Prepare

    instruction = params.section(Prepare).instruction
    answers, _ = answer(params, model, [(instruction, intent) for intent in intents])
    if output:
        with whole_file(output) as file:
            for intent, a in zip(intents, answers, strict=True):
                file.write(json.dumps({"intent": intent, "answer": a.text, "stop": a.stop}, ensure_ascii=False) + "\n")
        print(f"infer: {len(intents)} answers -> {output}")
    elif len(intents) == 1:
        print(answers[0].text)
    else:
        for intent, a in zip(intents, answers, strict=True):
            print(f"{intent}\n{a.text}\n")


def answer(params: Params, model: str, asked: list[tuple[str, str]]) -> tuple[list[Answer], list[int]]:
    """The model's answers to (instruction, input) pairs, in their order, and the prompts' lengths in tokens.

    Raises:
        Stop: a model folder is missing or damaged, or a prompt is longer than the model can read.
    """
    from howto.torch_setup import set_up_torch

    machine = params.section(ProfileMachine)
    device = set_up_torch(params.section(Machine), machine)

    from tqdm import tqdm

    from howto.base import load_adapter, load_base, load_tokenizer
    from howto.generation import generate
    from howto.prompt import prompt_ids

    tokenizer = load_tokenizer(BASE)
    base = load_base(BASE, machine.precision, device)
    limit = int(base.config.max_position_embeddings)
    max_new_tokens = params.section(Infer).max_new_tokens
    prompts = [prompt_ids(tokenizer, instruction, text) for instruction, text in asked]
    for number, prompt in enumerate(prompts, 1):
        if len(prompt) + max_new_tokens > limit:
            raise Stop(
                f"intent {number}: {len(prompt)} tokens and infer.max_new_tokens = {max_new_tokens} are more than the "
                f"{limit} that the model can read; shorten the text, or lower max_new_tokens in params.yaml"
            )
    chosen = load_adapter(base, ADAPTER, BASE) if model == "adapter" else base
    answers: list[Answer | None] = [None] * len(prompts)
    batch_size = params.section(ProfileInfer).batch_size
    found = generate(chosen, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    for a in tqdm(found, total=len(prompts), desc=f"infer {model}", unit="row", disable=None):
        answers[a.index] = a
    return [a for a in answers if a is not None], [len(prompt) for prompt in prompts]


def read_intents(name: str) -> list[str]:
    """The lines of a text file, or of standard input for `-`; blank lines are passed over.

    Raises:
        Stop: no such file, not UTF-8, or no intent in it.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise Stop(f"{name}: no such file; give a text file with an intent a line") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Stop(f"{name}:{line}: not UTF-8; save the file as UTF-8") from None
    intents = [line.strip() for line in lines if line.strip()]
    if not intents:
        raise Stop(f"{name}: no intent in it; write one a line")
    return intents


if __name__ == "__main__":
    main()
