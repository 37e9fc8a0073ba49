"""Files of intents: text with one a line, JSONL, or CSV. A line that cannot be read does not hinder the others."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from howto.core.errors import UserError

NAMES = ("intent", "instruction", "input")  # what a field with the intent may be called
CONTEXT = "context"
NAMED = f"{', '.join(NAMES[:-1])} or {NAMES[-1]}"
LONGEST_VALUE = 2**31 - 1  # characters in a CSV file: as many as Python's reader can be told everywhere


class Intent(NamedTuple):
    """What is wanted, and a text that the answer is to be drawn from (or ""); `line` counts from 1."""

    line: int
    intent: str
    context: str

    @classmethod
    def of(cls, line: int, intent: str, context: str = "") -> Intent:
        """An intent without the blanks around it.

        Raises:
            ValueError: it is empty, or one of the two is no text that a model could read.
        """
        for text in (intent, context):
            if "\0" in text:
                raise ValueError("a NUL character in it; save it as UTF-8")
            if half := re.search("[\ud800-\udfff]", text):  # bytes that were no UTF-8 come as U+DC80..DCFF
                raise ValueError(
                    "not UTF-8" if "\udc80" <= half[0] <= "\udcff" else "half of a character, a lone surrogate, in it"
                )
        if not intent.strip():
            raise ValueError("an empty intent")
        return cls(line, intent.strip(), context.strip())


def read_intents(name: str, stdin: IO[bytes]) -> tuple[list[Intent], list[str]]:
    """The intents of a file, and what is wrong with its other lines: `file:line: reason`.

    The ending says what the file holds: `.jsonl` objects, `.csv` columns, anything else (and `-`, standard input) an
    intent a line; an object or a column has the intent as `intent`, `instruction` or `input`, and may have a `context`.

    Raises:
        UserError: no such file, or a CSV file without such a column.
    """
    wanted = "give a file of intents (.txt, .jsonl or .csv)"
    try:
        data = stdin.read() if name == "-" else Path(name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{name}: no such file; {wanted}") from None
    except IsADirectoryError:
        raise UserError(f"{name}: a folder; {wanted}") from None
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); {wanted}") from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    ending = Path(name).suffix.lower()
    if ending == ".csv":
        return _from_csv(name, data)
    intents: list[Intent] = []
    bad: list[str] = []
    for number, line in enumerate(data.split(b"\n"), 1):
        text = line.decode("utf-8", "surrogateescape").strip()
        if not text:
            continue
        try:
            intents.append(_from_json(number, text) if ending == ".jsonl" else Intent.of(number, text))
        except ValueError as error:
            bad.append(f"{name}:{number}: {error}")
    return intents, bad


def _from_json(number: int, text: str) -> Intent:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # a ValueError: a number of thousands of digits, too
        value = None
    if not isinstance(value, dict):
        Intent.of(number, text)  # what is not UTF-8 is said to be so
        raise ValueError("not a JSON object")
    return _checked(number, value)


def _checked(number: int, value: dict[str, object]) -> Intent:
    intent = next((value[name] for name in NAMES if value.get(name) is not None), None)
    context = value.get(CONTEXT)
    if not isinstance(intent, str) or not intent.strip():
        raise ValueError(f"no text under {NAMED}")
    if context is not None and not isinstance(context, str):
        raise ValueError(f"{CONTEXT} is not a text")
    return Intent.of(number, intent, context or "")


def _from_csv(name: str, data: bytes) -> tuple[list[Intent], list[str]]:
    intents: list[Intent] = []
    bad: list[str] = []
    rows = _csv_rows(data, name, bad)
    line, header = next(rows, (1, []))
    if not set(NAMES) & set(header) and not bad:
        raise UserError(f"{name}:{line}: no column {NAMED}; name the one with the intents so")
    for column in (*NAMES, CONTEXT):
        if header.count(column) > 1:
            raise UserError(f"{name}:{line}: the column {column!r} stands there twice; rename one")
    for number, values in rows:
        try:
            if len(values) != len(header):
                raise ValueError(f"{len(values)} values, and the header names {len(header)} columns")
            intents.append(_checked(number, dict(zip(header, values, strict=True))))
        except ValueError as error:
            bad.append(f"{name}:{number}: {error}")
    return intents, bad


def _csv_rows(data: bytes, name: str, bad: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(line on which the row begins, values) of the rows that are not blank, as far as it is known where one begins."""
    text = data.decode("utf-8", "surrogateescape")
    csv.field_size_limit(LONGEST_VALUE)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            bad.append(f"{name}:{number}: not CSV ({error}); nothing was read from there on, mend the quotes")
            return
        if any(value.strip() for value in values):
            yield number, values
