"""The rows that pass between the stages, and how they are read from and written to JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from howto.core.atomic import atomic_file
from howto.core.errors import UserError


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class RawRow(_Row):
    """A row as a data set gives it, with Dolly's columns. Other columns are passed over."""

    instruction: str | None
    context: str | None = ""
    response: str | None
    category: str | None = ""


class Row(_Row):
    """A row as the model sees it, in the format of Alpaca.

    `instruction` is the same for all rows; `input` is the user's intent and, after a blank line, its
    context if it has one; `context` repeats that part alone; `output` is the reference.
    `references` are others that an answer is scored against too; a row that has none does not name them in a file.
    """

    id: str
    category: str
    instruction: str
    input: str
    context: str
    output: str
    references: tuple[str, ...] = ()

    @property
    def intent(self) -> str:
        """`input` without its context."""
        return intent_of(self.input, self.context)


def input_of(intent: str, context: str) -> str:
    """A row's `input`: the intent and, after a blank line, its context if it has one."""
    return f"{intent}\n\n{context}" if context else intent


def intent_of(text: str, context: str) -> str:
    """A row's `input` without its context."""
    return text.removesuffix(context).removesuffix("\n\n") if context else text


class Prediction(_Row):
    """What a model wrote for the row of this id, with this seed.

    `prompt_tokens` and `new_tokens` are counts (the end-of-sequence token is not counted); `stop` is
    "eos" when the model ended its answer itself, "stop" when one of `infer.stop` did, "length" when it was
    cut at `max_new_tokens`, and "too_long" when not even the intent fits into what the model can read: the
    text is empty then.

    `reference_log_probability` is the mean over the reference's tokens, its end of sequence among them
    (`reference_tokens` in all), in nats: how likely the model finds the reference. None if it is too long.
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
    """All rows of a JSONL file. Blank lines are passed over.

    Raises:
        UserError: with file and line: the file is missing, is empty (unless `empty`), is not UTF-8, or has
            a line that is not a JSON object with the fields of `kind`.
    """
    rows = [row for _, row in number_rows(path, kind)]
    if not rows and not empty:
        raise UserError(f"{path}: no rows in it; make it again with `dvc repro`")
    return rows


def number_rows(path: Path, kind: type[R]) -> Iterator[tuple[int, R]]:
    """Yield (line number from 1, row) of a JSONL file, without holding the file in memory. Raises as `read_rows`."""
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not there; make it with `dvc repro`") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, and a JSONL file is wanted") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, kind.model_validate_json(line)
            except ValidationError as error:
                raise UserError(f"{path}:{number}: {_reason(error)}; mend or remove the line") from None


def write_rows(path: Path, rows: Iterable[BaseModel]) -> None:
    """Write rows as JSONL, whole or not at all."""
    with atomic_file(path) as file:
        for row in rows:
            file.write(json.dumps(row.model_dump(exclude_defaults=True), ensure_ascii=False) + "\n")


def _reason(error: ValidationError) -> str:
    """The first thing that is wrong with a line, in words."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return f"not a whole JSON object ({first['ctx']['error']})"
    if first["type"] in ("model_type", "model_attributes_type"):
        return "a JSON object is wanted"
    if first["type"] == "missing":
        return f"field {field!r} is missing"
    return f"field {field!r}: {first['msg'].removeprefix('Input should be ')} is wanted, not {first['input']!r:.60}"
