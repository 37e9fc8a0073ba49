"""Read the texts of one raw row, or say what is wrong with it."""

import json
from typing import Any, NamedTuple

from howto.data.config import Columns

LONGEST_ROW = 16 << 20  # bytes


class BadRow(Exception):
    """What is wrong with a row."""


class RawTexts(NamedTuple):
    """The texts of a row; "" for one that the row does not have. `references` are more answers to score against."""

    instruction: str
    context: str
    response: str
    category: str
    references: tuple[str, ...]


def parse_row(line: bytes, columns: Columns) -> RawTexts:
    """Return the texts of a row that is given as a JSON object.

    Raise BadRow if the line is too long, not UTF-8 or not a JSON object, a column is missing, or a value is not text.
    """
    if len(line) > LONGEST_ROW:
        raise BadRow(f"the row is longer than {LONGEST_ROW >> 20} MiB")
    try:
        row = _DECODER.decode(line.decode())
    except json.JSONDecodeError as error:
        raise BadRow(f"not a JSON object ({error.msg} at character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number with thousands of digits, deeply nested lists
        raise BadRow(f"not a JSON object ({error})") from None
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, got {row!r:.40}")
    for name in (columns.instruction, columns.response):
        if name not in row:
            raise BadRow(f"no column {name!r}, the row has {listed(list(row))}")
    instruction, context, response, category = (
        "" if row.get(name) is None else _text(name, row[name]) for name in columns.texts()
    )
    references = row.get(columns.references) or []
    if not isinstance(references, list):
        raise BadRow(f"column {columns.references!r}: expected a list of texts, got {references!r:.40}")
    others = tuple(_text(columns.references, text) for text in references)
    return RawTexts(instruction, context, response, category, others)


def listed(names: list[str]) -> str:
    """Return the first of the names, short enough for a message."""
    return f"{', '.join(f'{name!r:.80}' for name in names[:10]) or 'none':.300}"


def _text(name: str | None, value: object) -> str:
    """Return the value of a column. Raises BadRow if it is not text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise BadRow(f"column {name!r}: expected text, got {value!r:.40}")
    if "\0" in value:
        raise BadRow(f"column {name!r}: expected text, got a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"column {name!r}: expected text, got half of a surrogate pair") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise BadRow("a key occurs twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
