"""The rows that stages exchange, and reading and writing them as JSON lines."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from howto.core.atomic import atomic_file
from howto.core.errors import UserError


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Message(_Row):
    """A turn of a conversation."""

    role: Literal["user", "assistant"]
    content: str


NO_SOURCE = "none"  # what a row without a source is counted under, if others have one


class Row(_Row):
    """A row in Alpaca's format.

    `instruction` is the system message. `input` is the user's intent and, after a blank line, the context if there is
    one; `context` repeats it. `output` is the reference answer. Answers are scored against `references` too. `history`
    is what was said before the intent, from the first message of the user to an answer. `source` names where the row
    is from, if there are several sources.
    """

    id: str
    category: str
    instruction: str
    input: str
    context: str
    output: str
    references: tuple[str, ...] = ()
    history: tuple[Message, ...] = ()
    source: str = ""

    @property
    def intent(self) -> str:
        """Return `input` without its context."""
        return intent_of(self.input, self.context)


def input_of(intent: str, context: str) -> str:
    """Return a row's `input`: the intent and, after a blank line, the context if there is one."""
    return f"{intent}\n\n{context}" if context else intent


def intent_of(text: str, context: str) -> str:
    """Return a row's `input` without its context."""
    return text.removesuffix(context).removesuffix("\n\n") if context else text


class Prediction(_Row):
    """A model's answer to the row of this id, with this seed.

    `prompt_tokens` and `new_tokens` are counts without the end-of-sequence token. `stop` says what ended the answer:
    "eos" (the model), "stop" (a string in `infer.stop`), "length" (`max_new_tokens`), or "too_long" (the intent alone
    exceeds the context window, and the text is empty).

    `reference_log_probability` is the model's mean log-probability, in nats, of the reference's `reference_tokens`
    tokens including the end of sequence. It is None if the reference is too long.
    """

    id: str
    seed: int
    text: str
    prompt_tokens: int
    new_tokens: int
    stop: str
    reference_tokens: int
    reference_log_probability: float | None


R = TypeVar("R", bound=_Row)


def read_rows(path: Path, kind: type[R], *, empty: bool = False) -> list[R]:
    """Return all rows of a JSONL file. Blank lines are skipped.

    Raise UserError if the file is missing, has no rows (unless `empty`), or a line is not a JSON object in UTF-8 with
    the fields of `kind`. The message names file and line.
    """
    rows = [row for _, row in number_rows(path, kind)]
    if not rows and not empty:
        raise UserError(f"{path}: the file has no rows. Make it again with `dvc repro`.")
    return rows


def number_rows(path: Path, kind: type[R]) -> Iterator[tuple[int, R]]:
    """Yield (line number from 1, row) without holding the file in memory. Raises as `read_rows`."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: no such file. Make it with `dvc repro`.") from None
    except IsADirectoryError:
        raise UserError(f"{path}: expected a JSONL file, got a folder.") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, kind.model_validate_json(line)
            except ValidationError as error:
                raise UserError(f"{path}:{number}: {_reason(error)}. Correct or remove the line.") from None


def write_rows(path: Path, rows: Iterable[BaseModel | dict[str, Any]]) -> None:
    """Write rows atomically as JSONL."""
    with atomic_file(path) as file:
        for row in rows:
            fields = row if isinstance(row, dict) else row.model_dump(exclude_defaults=True)
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def _reason(error: ValidationError) -> str:
    """Describe the first problem of a line."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return f"not a complete JSON object ({first['ctx']['error']})"
    if first["type"] in ("model_type", "model_attributes_type"):
        return "expected a JSON object"
    if first["type"] == "missing":
        return f"field {field!r} is missing"
    expected = first["msg"].removeprefix("Input should be ")
    return f"field {field!r}: expected {expected}, got {first['input']!r:.60}"
