"""`howto ask`: answer one intent, a prompt in the terminal, or a file of intents."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from howto.core.atomic import atomic_file
from howto.core.config import Params
from howto.core.errors import UserError
from howto.core.paths import ADAPTER, BASE
from howto.core.schema import Row, input_of
from howto.data.config import Instruction
from howto.inference.config import Infer, ProfileInfer
from howto.modeling.config import Machine, ProfileMachine
from howto.sources.config import Model
from howto.tools.intents import Intent, read_intents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from howto.inference.decoder import Answer
    from howto.inference.generator import Answering


CODE = ("howto/core", "howto/inference", "howto/modeling", "howto/tools/ask.py")
FIRST = b'{"line": '  # what a file of answers begins with


class Answered(BaseModel):
    """An answer to a line of a file. `run` is the same for the same model and params."""

    model_config = ConfigDict(strict=True)
    line: int
    intent: str
    context: str
    answer: str
    stop: str
    seed: int
    model: str
    run: str


def ask(
    params: Params,
    models: Sequence[str],
    *,
    intent: str | None,
    context: str,
    input: str | None,
    output: Path | None,
    adapter: Path | None,
) -> None:
    """Let each of `models` ("base", "adapter") answer an intent, a file of intents, or a prompt in the terminal.

    Raises:
        UserError: a model or a file is missing or damaged, or an intent is too long.
    """
    if input:
        # With no standard input at all, as under some schedulers, there is none to read from.
        intents, bad = read_intents(input, sys.stdin.buffer if sys.stdin else io.BytesIO())
        _say(bad)
        if not intents:
            raise UserError(f"{input}: no intent in it; write one a line")
        if output:
            check_output(output)
    elif intent is not None:
        asked = _from_person(intent, context)
    people = {model: Person(params, model, adapter or ADAPTER) for model in models}
    first = people[models[0]]
    if input:
        too_long = answer_file(first, intents, output) if output else print_answers(first, intents)
        _say([f"{input}:{one.line}: {first.too_long}" for one in too_long])
        if left := len(bad) + len(too_long):
            raise UserError(f"{input}: {left} of {len(intents) + len(bad)} lines were not answered, see above")
    elif intent is not None:
        answer_one(people, asked)
    else:
        converse(people)


class Person:
    """One model, for whoever asks it."""

    def __init__(self, params: Params, model: str, adapter: Path) -> None:
        from howto.modeling.torch_setup import set_up_torch, versions

        machine, profile = params.section(ProfileMachine), params.section(ProfileInfer)
        device = set_up_torch(params.section(Machine), machine)

        from howto.inference.generator import Answering

        if model == "adapter":
            _say_for_which_base(adapter, params.section(Model).source)
        self.model = model
        self.decoding = profile.decoding(params.section(Infer))
        self._instruction = params.section(Instruction).root
        self._made_of = [BASE, adapter] if model == "adapter" else [BASE]
        self._params, self._versions = params, versions(device)
        self.answering: Answering = Answering(
            BASE,
            adapter if model == "adapter" else None,
            self.decoding,
            batch_size=profile.batch_size,
            precision=machine.precision,
            device=device,
        )

    def run(self) -> str:
        """The same for the same model and params."""
        from howto.modeling.fingerprint import Fingerprint

        inputs = Fingerprint(self._made_of, self._params, [Infer, ProfileInfer, Machine, ProfileMachine], CODE)
        return inputs.key(instruction=self._instruction, **self._versions)

    def row(self, intent: Intent) -> Row:
        """The intent as the model is asked."""
        text = input_of(intent.intent, intent.context)
        return Row(id=text, category="", instruction=self._instruction, input=text, context=intent.context, output="")

    @property
    def too_long(self) -> str:
        """What is said of an intent that is too long."""
        return f"longer than the {self.answering.longest_prompt} tokens that a prompt may have"

    def fit(self, intents: list[Intent]) -> tuple[list[Row], list[str | None]]:
        """The rows of intents, and what of each goes into its prompt."""
        rows = [self.row(intent) for intent in intents]
        inputs = list(self.answering.fit(rows))
        if shortened := sum(text is not None and text != row.input for row, text in zip(rows, inputs, strict=True)):
            print(
                f"note: {shortened} of {len(rows)} contexts were shortened, to prompts of "
                f"{self.answering.longest_prompt} tokens",
                file=sys.stderr,
            )
        return rows, inputs


def answer_one(people: dict[str, Person], intent: Intent) -> None:
    """Print what each model answers: as it is written, if there is one model."""
    answers = {}
    for model, person in people.items():
        rows, inputs = person.fit([intent])
        if inputs[0] is None:
            raise UserError(f"the intent is {person.too_long}; shorten it, or change infer in params.yaml")
        stream = Stream(person.answering.tokenizer, person.decoding.stop) if len(people) == 1 else None
        watch = stream.show if stream else None
        ((_, _, answer),) = person.answering.answers(rows, inputs, [(0, person.decoding.seeds[0])], watch=watch)
        answers[model] = answer
        if stream:
            stream.end(answer.text)
    if len(people) > 1:
        _side_by_side(answers)


class Stream:
    """Prints an answer while it is written. `stop` are the texts that end one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: list[str]) -> None:
        self._decode, self._stop = tokenizer.decode, stop
        self._shown = ""

    def show(self, _: int, tokens: list[int]) -> None:
        """Print what is new; what may yet turn out to be no part of the answer waits."""
        text = self._sure(str(self._decode(tokens, skip_special_tokens=True)))
        if text.startswith(self._shown):
            print(text[len(self._shown) :], end="", flush=True)
            self._shown = text

    def end(self, answer: str) -> None:
        """Print what is left of the answer."""
        # A tokenizer that takes back what it gave leaves no way but to begin again.
        print(answer[len(self._shown) :] if answer.startswith(self._shown) else f"\n{answer}")

    def _sure(self, text: str) -> str:
        """The part of a text that stays: no blank at its end, no character of which only the first bytes are there,
        and nothing from which on a text that ends answers stands, or begins."""
        for stop in self._stop:
            text = text.partition(stop)[0]
            begun = next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
            text = text[: len(text) - begun]
        return text.rstrip("\ufffd").strip()


def converse(people: dict[str, Person]) -> None:
    """Ask for intents and answer them, until an empty line, or the end of the input."""
    if not sys.stdin:
        return
    is_terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is one that can be told of
    if is_terminal:
        print("What do you want to do? An empty line, or Ctrl-D, ends it.")
    while True:
        try:
            intent = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        if not intent:
            return
        try:
            answer_one(people, _from_person(intent))
        except UserError as stop:  # the next intent may be a better one
            _say([str(stop)])
        print()


def print_answers(person: Person, intents: list[Intent]) -> list[Intent]:
    """Print intents and answers, in their order; those that are too long to be answered are returned."""
    rows, inputs = person.fit(intents)
    short = [number for number, text in enumerate(inputs) if text is not None]
    wanted = [(number, person.decoding.seeds[0]) for number in short]
    found = {number: answer for number, _, answer in person.answering.answers(rows, inputs, wanted, bar="infer")}
    for number in short:
        print(f"{intents[number].intent}\n{found[number].text}\n")
    return _without(intents, inputs)


def answer_file(person: Person, intents: list[Intent], output: Path) -> list[Intent]:
    """Write the answers as JSONL; what stands there by now, of a run that was stopped, is not made again.

    While it works the answers stand in the order in which they come; in the end, in that of the intents. Those that
    are too long get an empty answer, and are returned.

    Raises:
        UserError: the file holds something else, or answers of another model, other params or other intents.
    """
    from howto.inference.resume_log import journal

    run = person.run()
    with journal(output, Answered) as answers:
        if not answers.found and not answers.broken.startswith(FIRST[: len(answers.broken)]):
            raise UserError(f"{output}: holds something else than answers; name another file")
        by_line = {intent.line: intent for intent in intents}
        for answer in answers.found:
            asked = by_line.get(answer.line)
            if answer.run != run or asked is None or (asked.intent, asked.context) != (answer.intent, answer.context):
                raise UserError(
                    f"{output}: holds answers of another model, other params or other intents; "
                    "remove it, or name another file"
                )
        found = {(answer.line, answer.seed): answer for answer in answers.found}
        rows, inputs = person.fit(intents)
        wanted = [
            (number, seed)
            for number, intent in enumerate(intents)
            for seed in person.decoding.seeds
            if (intent.line, seed) not in found
        ]
        try:
            for number, seed, given in person.answering.answers(rows, inputs, wanted, bar="infer"):
                answer = _answered(person.model, run, intents[number], seed, given)
                found[answer.line, seed] = answer
                answers.add(answer)
        except KeyboardInterrupt:
            print(f"infer: {len(found)} answers are in {output}; the same command goes on from there", file=sys.stderr)
            raise
    with atomic_file(output) as file:
        for key in sorted(found):
            file.write(json.dumps(found[key].model_dump(), ensure_ascii=False) + "\n")
    before = f" ({len(found) - len(wanted)} were there)" if len(found) > len(wanted) else ""
    print(f"infer: {len(found)} answers -> {output}{before}")
    return _without(intents, inputs)


def check_output(output: Path) -> None:
    """Stop where no file can be written, before there is work that would be lost."""
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir() or (output.exists() and not output.is_file()):
        raise UserError(f"{output}: no file can be there; name another one")


def _from_person(intent: str, context: str = "") -> Intent:
    try:
        return Intent.of(1, intent, context)
    except ValueError as error:
        raise UserError(f"{error}; say what you want to do, as text") from None


def _say(problems: list[str]) -> None:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)


def _without(intents: list[Intent], inputs: list[str | None]) -> list[Intent]:
    return [intent for intent, text in zip(intents, inputs, strict=True) if text is None]


def _answered(model: str, run: str, intent: Intent, seed: int, given: Answer) -> Answered:
    return Answered(
        line=intent.line,
        intent=intent.intent,
        context=intent.context,
        answer=given.text,
        stop=given.stop,
        seed=seed,
        model=model,
        run=run,
    )


def _side_by_side(answers: dict[str, Answer]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text  # an answer as it is: a str would be searched for markup and names of emoji

    table = Table(expand=True)
    for label in ("base model", "fine-tuned"):
        table.add_column(label, ratio=1, overflow="fold")
    table.add_row(*(Text(answers[model].text) for model in ("base", "adapter")))
    Console(width=None if Console().is_terminal else 110).print(table)


def _say_for_which_base(adapter: Path, source: str) -> None:
    """Say so if an adapter names another base than this one, which came from `source`, and has nothing by which it
    could be told."""
    from howto.modeling.loading import BASE_HASH_FILE

    try:
        config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        named = config.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return  # what is wrong with it is said where it is loaded
    if not isinstance(named, str) or named in ("", source) or (adapter / BASE_HASH_FILE).is_file():
        return
    if Path(named).absolute() != BASE.absolute():
        print(f"note: {adapter} says that it was made for {named}; it is put on {BASE}", file=sys.stderr)
