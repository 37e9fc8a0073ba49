"""`howto ask`: answer one intent, a prompt in the terminal, or a file of intents."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from howto.core.config import Params
from howto.core.errors import UserError
from howto.core.paths import ADAPTER, BASE
from howto.core.schema import Message, Row, input_of, write_rows
from howto.data.config import Prepare, prepare_settings
from howto.inference.config import Infer, ProfileInfer
from howto.modeling.config import Machine, ProfileMachine
from howto.sources.config import Model
from howto.tools.intents import Intent, begins_like_json, read_intents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from howto.inference.decoder import Request
    from howto.modeling.collate import Example

CODE = ("howto/core", "howto/inference", "howto/modeling", "howto/tools/ask.py")
FIRST_BYTES = b'{"line": '  # of every output file


class FileAnswer(BaseModel):
    """A line of an output file. `run` is a hash of the model, the params and the code."""

    model_config = ConfigDict(strict=True)
    line: int
    intent: str
    context: str
    answer: str
    stop: str
    seed: int
    model: str
    run: str
    history: tuple[Message, ...] = ()
    system: str = ""


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

    Raise UserError if a model or a file is missing or damaged, or an intent cannot be answered.
    """
    parsed = None if intent is None else Intent.parse(intent=intent, context=context)
    if input:
        intents, errors = read_intents(input, params.section(Prepare).columns)
        _print_errors(errors)
        if not intents:
            raise UserError(f"{input}: expected an intent a line, got none.")
        if output:
            check_output(output)
    adapters = {"base": None, "adapter": adapter or ADAPTER}
    assistants = [Assistant(params, adapters[model]) for model in models]
    if input:
        first = assistants[0]
        too_long = answer_file(first, intents, output) if output else print_answers(first, intents)
        _print_errors([f"{input}:{line}: {first.too_long}" for line in too_long])
        if failed := len(errors) + len(too_long):
            raise UserError(f"{input}: {failed} of {len(intents) + len(errors)} lines were not answered, see above.")
    elif parsed:
        answer_one(assistants, parsed)
    else:
        chat(assistants)


class Assistant:
    """A loaded model that answers intents."""

    def __init__(self, params: Params, adapter: Path | None) -> None:
        """Load the base model, with the adapter if there is one."""
        from howto.modeling.torch_setup import set_up_torch, versions

        machine, profile = params.section(ProfileMachine), params.section(ProfileInfer)
        device = set_up_torch(params.section(Machine), machine)

        from howto.inference.generator import Generator

        if adapter:
            note_differences(adapter, params.section(Model).source)
        self.decoding = profile.decoding(params.section(Infer))
        size, precision = profile.batch_size, machine.precision
        self.generator = Generator.load(
            BASE, adapter, self.decoding, batch_size=size, precision=precision, device=device
        )
        self.model = "adapter" if adapter else "base"
        self._folders = [BASE, adapter] if adapter else [BASE]
        self._params, self._versions = params, versions(device)
        self._instruction = prepare_settings(params).instruction
        self.too_long = f"longer than the {self.generator.longest_prompt} tokens that a prompt may have"

    def run(self) -> str:
        """Return a hash of all that decides about the answer to an intent."""
        from howto.modeling.fingerprint import Fingerprint

        fingerprint = Fingerprint(self._folders, self._params, [Infer, ProfileInfer, Machine, ProfileMachine], CODE)
        return fingerprint.key(instruction=self._instruction, **self._versions)

    def encode(self, intents: dict[int, Intent]) -> dict[int, Example]:
        """Return the intents as rows, and print how many lost a part of their context."""
        rows = {}
        for line, intent in intents.items():
            text, context = input_of(intent.intent, intent.context), intent.context
            row = Row(
                id=text,
                category="",
                instruction=intent.system or self._instruction,
                input=text,
                context=context,
                output="",
                history=intent.history,
            )
            rows[line] = self.generator.encode(row)
        if shortened := sum(row.is_shortened for row in rows.values()):
            size = self.generator.longest_prompt
            print(f"note: {shortened} contexts were shortened to prompts of {size} tokens", file=sys.stderr)
        return rows


def answer_one(assistants: Sequence[Assistant], intent: Intent) -> None:
    """Print the answer of one model while it is decoded, or the answers of two side by side."""
    from howto.inference.decoder import Request

    answers = []
    for assistant in assistants:
        (row,) = assistant.encode({1: intent}).values()
        if not row.prompt:
            raise UserError(f"the intent is {assistant.too_long}. Shorten it, or change infer in params.yaml.")
        stream = Stream(assistant.generator.chat.tokenizer, assistant.decoding.stop) if len(assistants) == 1 else None
        request = Request(row, assistant.decoding.seeds[0])
        (answer,) = assistant.generator.generate([request], on_token=stream.update if stream else None)
        answers.append(answer.text)
        if stream:
            stream.end(answer.text)
    if len(assistants) > 1:
        from howto.tools.compare_table import answers_table, new_console

        new_console().print(answers_table(list(zip(("base model", "fine-tuned"), answers, strict=True))))


class Stream:
    """Prints an answer while it is decoded, up to the first of the strings in `stop`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: list[str]) -> None:
        self._decode, self._stop = tokenizer.decode, stop
        self._shown = ""

    def update(self, _: Request, tokens: list[int]) -> None:
        """Print what is new, but for text that may not belong to the answer."""
        text = self._final(str(self._decode(tokens, skip_special_tokens=True)))
        if text.startswith(self._shown):
            print(text[len(self._shown) :], end="", flush=True)
            self._shown = text

    def end(self, answer: str) -> None:
        """Print the rest of the answer. If the decoded prefix changed, reprint the whole answer."""
        print(answer[len(self._shown) :] if answer.startswith(self._shown) else f"\n{answer}")

    def _final(self, text: str) -> str:
        """Return the text without blanks at its end, an incomplete character, and a stop string or its beginning."""
        for stop in self._stop:
            text = text.partition(stop)[0]
            begun = next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
            text = text[: len(text) - begun]
        return text.rstrip("\ufffd").strip()


def chat(assistants: Sequence[Assistant]) -> None:
    """Read intents and answer them, until an empty line or the end of the input."""
    is_terminal = sys.stdin.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # so that a line which is not UTF-8 fails alone
    if is_terminal:
        print("What do you want to do? An empty line or Ctrl-D ends the session.")
    while True:
        try:
            intent = input("> " if is_terminal else "").strip()
        except EOFError:
            return
        if not intent:
            return
        if not is_terminal and begins_like_json(intent.encode(errors="surrogateescape")):
            raise UserError("standard input: expected an intent a line, got JSON. Give it with `--input -`.")
        try:
            answer_one(assistants, Intent.parse(intent=intent))
        except UserError as error:
            _print_errors([str(error)])
        print()


def print_answers(assistant: Assistant, intents: dict[int, Intent]) -> list[int]:
    """Print intents and answers in order; return the lines of intents that are too long."""
    from howto.inference.decoder import Request

    rows = assistant.encode(intents)
    requests = {Request(row, assistant.decoding.seeds[0]): line for line, row in rows.items() if row.prompt}
    answers = assistant.generator.generate(list(requests), progress="ask")
    texts = {requests[answer.request]: answer.text for answer in answers}
    for line in sorted(texts):
        print(f"{intents[line].intent}\n{texts[line]}\n")
    return [line for line, row in rows.items() if not row.prompt]


def answer_file(assistant: Assistant, intents: dict[int, Intent], output: Path) -> list[int]:
    """Write the answers as JSONL, in the order of the intents, and keep those that a stopped run has written.

    An intent that is too long gets an empty answer, and its line is returned. Raise UserError if the file has other
    content, or answers of another model, other params or other intents.
    """
    from howto.inference.decoder import Request
    from howto.inference.resume_log import open_log, read_log

    if output.exists() and not FIRST_BYTES.startswith(output.read_bytes()[: len(FIRST_BYTES)]):
        raise UserError(f"{output}: expected a file of answers. Give another --output.")
    run, asked = assistant.run(), set(Intent.model_fields)
    found = {(answer.line, answer.seed): answer for answer in read_log(output, FileAnswer)}
    for answer in found.values():
        if answer.run != run or intents.get(answer.line) != Intent(**{key: getattr(answer, key) for key in asked}):
            raise UserError(f"{output}: has answers of another model, params or intents. Give another --output.")
    kept = len(found)
    rows, seeds = assistant.encode(intents), assistant.decoding.seeds
    requests = {Request(row, seed): line for line, row in rows.items() for seed in seeds if (line, seed) not in found}
    with open_log(output, FileAnswer) as log:
        try:
            for new in assistant.generator.generate(list(requests), progress="ask"):
                line = requests[new.request]
                answer = FileAnswer(
                    line=line,
                    **dict(intents[line]),
                    answer=new.text,
                    stop=new.stop,
                    seed=new.request.seed,
                    model=assistant.model,
                    run=run,
                )
                log(answer)
                found[line, answer.seed] = answer
        except KeyboardInterrupt:
            print(f"ask: {len(found)} answers are in {output}. Run the same command to resume.", file=sys.stderr)
            raise
    write_rows(output, [found[key] for key in sorted(found)])
    print(f"ask: {len(found)} answers -> {output}" + (f" ({kept} from before)" if kept else ""))
    return [line for line, row in rows.items() if not row.prompt]


def check_output(output: Path) -> None:
    """Raise a UserError if no file can be written there, before there is work that would be lost."""
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir() or (output.exists() and not output.is_file()):
        raise UserError(f"{output}: a file cannot be written there. Choose another one.")


def _print_errors(errors: list[str]) -> None:
    for error in errors:
        print(f"error: {error}", file=sys.stderr)


def note_differences(adapter: Path, source: str) -> None:
    """Print a note if an adapter of another program does not go with this base, which came from `source`.

    It may name another base, or have a chat template of its own, which is not used.
    """
    from howto.modeling.loading import BASE_HASH_FILE
    from howto.tools.older_readers import chat_template

    if (adapter / BASE_HASH_FILE).is_file():
        return
    try:
        config = json.loads((adapter / "adapter_config.json").read_bytes())
        base, template = str(config["base_model_name_or_path"] or source), chat_template(adapter)
    except (OSError, ValueError, TypeError, KeyError):
        return  # `load_adapter` reports what is wrong
    if base != source and Path(base).absolute() != BASE.absolute():
        print(f"note: {adapter} names the base {base}; it is used with {BASE}", file=sys.stderr)
    if template and template != chat_template(BASE):
        print(f"note: {adapter} has another chat template than {BASE}, whose template is used", file=sys.stderr)
