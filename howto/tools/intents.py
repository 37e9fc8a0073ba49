"""Files of intents: text with an intent a line, or rows in any format that `prepare` reads. Each is read on its own."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from howto.core.errors import UserError, one_line
from howto.core.schema import Message
from howto.data.config import Columns
from howto.data.formats.raw_rows import parse_row
from howto.data.formats.readers import json_rows, read_chunks, row_ending
from howto.data.formats.row_formats import BadRow, RowFormats

# How JSON begins, and hardly any line of text: an object, a list of objects, texts or lists, or a bracket alone.
JSON_START = re.compile(rb"\s*(\{\s*(\"|\}|$)|\[\s*(\{|\"|\[|\]|$))")


class Intent(BaseModel):
    """What somebody wants to do, a text to answer from, or "", what was said before, and a system message, or ""."""

    model_config = ConfigDict(strict=True, str_strip_whitespace=True)
    intent: Annotated[str, Field(min_length=1)]
    context: str = ""
    history: tuple[Message, ...] = ()
    system: str = ""

    @classmethod
    def parse(cls, **fields: Any) -> Intent:
        """Return the intent from its fields. Raise UserError if one is empty or not text."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(": ".join([*map(str, first["loc"]), first["msg"]])) from None


def read_intents(name: str, columns: Columns) -> tuple[dict[int, Intent], list[str]]:
    """Return the intents of a file by number, from 1, and an error `file:number: reason` for each row without one.

    The number is the line of a text or of JSON lines, else the place among the rows. The intent of a row is in the
    column that `columns` names, or one of the usual names, or it is the user's last turn in a conversation. A file that
    has another ending, and "-" (standard input), has an intent a line, unless it begins like JSON.

    Raise UserError if the file cannot be read.
    """
    formats = RowFormats(columns.model_copy(update={"category": None, "references": None}), answered=False)
    intents, errors = {}, []
    try:
        for number, row, is_text in _rows(name, formats):
            try:
                if row.strip():
                    intents[number] = _of_line(row) if is_text else _of_row(row, formats)
            except (BadRow, UserError) as error:
                errors.append(f"{name}:{number}: {error}")
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}. Give a text file, or one with rows.") from None
    return intents, errors


def _rows(name: str, formats: RowFormats) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (number, row, whether it is a line of text). Raises as `read_intents`."""
    if name != "-" and row_ending(name):
        for chunk in read_chunks(Path(name), formats):
            yield from ((number, row, False) for number, row in enumerate(chunk.rows, chunk.first))
        return
    data = (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).removeprefix(b"\xef\xbb\xbf")
    is_text = not begins_like_json(data)
    for number, row in enumerate(_lines(name, data) if is_text else _json(name, data), 1):
        yield number, row, is_text


def begins_like_json(data: bytes) -> bool:
    """Return whether a text begins as JSON does."""
    return JSON_START.match(data) is not None


def _json(name: str, data: bytes) -> Iterator[bytes]:
    try:
        yield from json_rows(io.BufferedReader(io.BytesIO(data)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: it begins like JSON, but cannot be read ({one_line(error)}). Fix it.") from None


def _lines(name: str, data: bytes) -> list[bytes]:
    if b"\0" in data:
        raise UserError(f"{name}: expected UTF-8 text, got NUL bytes. Save the file as UTF-8.")
    return data.split(b"\n")


def _of_line(line: bytes) -> Intent:
    return Intent.parse(intent=line.decode("utf-8", "surrogateescape"))


def _of_row(row: bytes, formats: RowFormats) -> Intent:
    """Return the intent of a row, a JSON object or a JSON string. Raise BadRow or UserError if there is none."""
    if row.lstrip().startswith(b'"'):
        try:
            return Intent.parse(intent=json.loads(row))
        except ValueError as error:
            raise BadRow(f"not JSON ({one_line(error)})") from None
    texts, _found = parse_row(row, formats)
    history = tuple(
        Message(role="assistant" if number % 2 else "user", content=text) for number, text in enumerate(texts.history)
    )
    intent = texts.instruction
    if texts.context and intent.endswith(f"\n\n{texts.context}"):  # a row that `prepare` wrote
        intent = intent.removesuffix(f"\n\n{texts.context}")
    return Intent.parse(intent=intent, context=texts.context, history=history, system=texts.system)
