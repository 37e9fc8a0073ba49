"""One row of a raw file: its texts by the columns that params name, or what is wrong with it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from howto.data.config import Columns

SHOWN = 200  # characters of a bad row that are kept


@dataclass(frozen=True)
class BadRow:
    """What stands where a row should be, and what is wrong with it."""

    number: int
    problem: str
    text: str


@dataclass(frozen=True)
class Fields:
    """The texts of a row; one that the row does not have is "". `number` is its line, or its place in the file.

    `references` are answers that are as good as `response`, for scoring.
    """

    number: int
    instruction: str
    context: str
    response: str
    category: str
    references: tuple[str, ...] = ()


class Problem(Exception):
    """What is wrong with a row."""


class NotJSON(Problem):
    """What is wrong with a row that is not JSON."""


def read_fields(number: int, row: bytes | dict[str, str | None], columns: Columns) -> Fields:
    """The texts of a row, given as a JSON object or as its values by column.

    Raises:
        Problem: it is no row; NotJSON if it is not even JSON.
    """
    record: dict[str, Any] = _parse(row) if isinstance(row, bytes) else row
    texts = []
    for key, name in (
        ("instruction", columns.instruction),
        ("context", columns.context),
        ("response", columns.response),
        ("category", columns.category),
    ):
        value = record.get(name) if name is not None else None
        if value is None:
            if name not in record and key in ("instruction", "response"):
                raise Problem(f"field {name!r} is missing (the row has {listed(record)})")
            value = ""
        _check_text(name, value, is_json=isinstance(row, bytes))
        texts.append(value)
    references = (record.get(columns.references) if columns.references is not None else None) or []
    if not isinstance(references, list):
        raise Problem(f"field {columns.references!r}: a list of texts is wanted, not {_kind(references)}")
    for reference in references:
        _check_text(columns.references, reference, is_json=True)
    instruction, context, response, category = texts
    return Fields(number, instruction, context, response, category, tuple(references))


def _check_text(name: str | None, value: object, *, is_json: bool) -> None:
    """Raise a Problem if the value of a field is no text that can be written."""
    if not isinstance(value, str):
        raise Problem(f"field {name!r}: text is wanted, not {_kind(value)}")
    if "\0" in value:
        raise Problem(f"field {name!r}: a NUL character (character {value.find(chr(0)) + 1})")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            # JSON can spell half of a character; CSV and Parquet are read so that bytes become one.
            what = "a lone surrogate, half of a character" if is_json else "not UTF-8"
            raise Problem(f"field {name!r}: {what} (character {error.start + 1})") from None


def _parse(line: bytes) -> dict[str, Any]:
    """The JSON object of a line."""
    problem = None
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        text, problem = line.decode("utf-8", "replace"), f"byte {error.start + 1} is not UTF-8"
    try:
        value = _JSON.decode(text)
    except json.JSONDecodeError as error:
        what = "Unexpected byte order mark" if text.startswith("\ufeff") else error.msg.removesuffix(" at")
        raise NotJSON(problem or f"not a whole JSON object ({what} at character {error.pos + 1})") from None
    except RecursionError:
        raise Problem(problem or "nested too deeply") from None
    except ValueError:  # of which Python makes no integer
        raise Problem(problem or "a number of thousands of digits") from None
    if problem:
        raise Problem(problem)
    if not isinstance(value, dict):
        raise Problem(f"a JSON object is wanted, not {_kind(value)}")
    if isinstance(value, _Ambiguous):
        raise Problem(f"the key {value.twice!r:.80} stands there twice")
    return value


class _Ambiguous(dict[str, Any]):
    """A JSON object with a key that stands there twice."""

    twice: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    ambiguous = _Ambiguous(values)
    ambiguous.twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
    return ambiguous


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _kind(value: object) -> str:
    kinds: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    kinds |= {str: "a text", dict: "an object", _Ambiguous: "an object", type(None): "null"}
    return kinds[type(value)]


def listed(names: Iterable[str]) -> str:
    """The first of the names, in few characters."""
    return f"{', '.join(f'{name!r:.80}' for name in islice(names, 10)) or 'none':.300}"


def shown(value: bytes | dict[str, str | None] | list[str]) -> str:
    """The beginning of a bad row as text that can be written."""
    if isinstance(value, bytes):
        return value[:SHOWN].decode("utf-8", "backslashreplace")
    text = json.dumps(value, ensure_ascii=False)
    return text[:SHOWN].encode("utf-8", "backslashreplace").decode()
