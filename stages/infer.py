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
from howto.prompt import fitting_input, prompt_ids
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
    """Write the model's answer to every test row, in the order of the rows.

    Where a prompt is longer than the model can read its context is shortened; an intent that is too
    long by itself gets an empty answer, which scores 0.
    """
    rows = read_rows(TEST, Row)
    engine = Engine(params, model)
    texts = [fitting_input(engine.tokenizer, row, engine.longest_prompt) for row in rows]
    asked = [(row.instruction, text) for row, text in zip(rows, texts, strict=True) if text is not None]
    answers = iter(engine.answer(asked))
    predictions = []
    for row, text in zip(rows, texts, strict=True):
        if text is None:
            predictions.append(Prediction(id=row.id, text="", prompt_tokens=0, new_tokens=0, stop="too_long"))
        else:
            a = next(answers)
            predictions.append(
                Prediction(id=row.id, text=a.text, prompt_tokens=a.prompt_tokens, new_tokens=a.new_tokens, stop=a.stop)
            )
    write_rows(PREDICTIONS / f"{model}.jsonl", predictions)
    ended = sum(prediction.stop == "eos" for prediction in predictions)
    shortened = sum(text != row.input for row, text in zip(rows, texts, strict=True))
    print(
        f"infer: {len(rows)} answers by {model}, {ended} ended by the model, {shortened} contexts shortened "
        f"-> {PREDICTIONS / model}.jsonl"
    )


def answer_person(params: Params, model: str, intents: list[str], output: Path | None) -> None:
    """Print the answers, or write them to `output`."""
    from howto.params.instruction import Instruction

    instruction = params.section(Instruction).root
    answers = Engine(params, model).answer([(instruction, intent) for intent in intents])
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


class Engine:
    """The base model, or the base with its adapter, ready to answer.

    Raises:
        Stop: a model folder is missing or damaged.
    """

    def __init__(self, params: Params, model: str) -> None:
        from howto.torch_setup import set_up_torch

        machine = params.section(ProfileMachine)
        device = set_up_torch(params.section(Machine), machine)

        from howto.base import load_adapter, load_base, load_tokenizer

        self.tokenizer = load_tokenizer(BASE)
        base = load_base(BASE, machine.precision, device)
        self.max_new_tokens = params.section(Infer).max_new_tokens
        self.longest_prompt = int(base.config.max_position_embeddings) - self.max_new_tokens  # tokens
        self._batch_size = params.section(ProfileInfer).batch_size
        self._model = load_adapter(base, ADAPTER, BASE) if model == "adapter" else base
        self._name = model

    def answer(self, asked: list[tuple[str, str]]) -> list[Answer]:
        """The answers to (instruction, input) pairs, in their order.

        Raises:
            Stop: a prompt is longer than the model can read.
        """
        from tqdm import tqdm

        from howto.generation import generate

        prompts = [prompt_ids(self.tokenizer, instruction, text) for instruction, text in asked]
        for number, prompt in enumerate(prompts, 1):
            if len(prompt) > self.longest_prompt:
                raise Stop(
                    f"intent {number}: {len(prompt)} tokens, and beside infer.max_new_tokens = {self.max_new_tokens} "
                    f"the model can read {self.longest_prompt}; shorten the text or lower max_new_tokens in params.yaml"
                )
        found = generate(
            self._model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens, batch_size=self._batch_size
        )
        bar = tqdm(found, total=len(prompts), desc=f"infer {self._name}", unit="row", disable=None)
        return sorted(bar, key=lambda a: a.index)


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
