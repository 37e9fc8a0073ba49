"""Rows of JSON: one object a line (JSONL), or a list of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from howto.core.errors import UserError
from howto.data.chunks import CHUNK_BYTES, LONGEST_ROW, TOO_LONG, Chunk, Unread, in_chunks
from howto.data.config import Columns
from howto.data.records import SHOWN, BadRow, shown


def jsonl_chunks(path: Path, file: IO[bytes], columns: Columns) -> Iterator[Chunk]:
    """One object a line; blank lines are passed over, and counted.

    Raises:
        UserError: the file is a JSON list.
    """
    if _first_line(file).startswith(b"["):
        raise UserError(f"{path}: a JSON list, and .jsonl has one object a line; name the file .json")
    yield from _lines(path, file)


def _lines(path: Path, file: IO[bytes]) -> Iterator[Chunk]:
    rows: list[Unread | BadRow] = []
    size, number = 0, 0
    while line := file.readline(LONGEST_ROW + 1):
        number += 1
        size += len(line)
        if len(line) > LONGEST_ROW:
            start = line[:SHOWN]
            while line and not line.endswith(b"\n"):
                line = file.readline(CHUNK_BYTES)
                size += len(line)
            rows.append(BadRow(number, f"the line is {TOO_LONG}", shown(start)))
        elif not line.isspace():
            rows.append((number, line.rstrip()))
        if size >= CHUNK_BYTES:
            yield Chunk(path, rows, size)
            rows, size = [], 0
    yield Chunk(path, rows, size)


def json_chunks(path: Path, file: IO[bytes], columns: Columns) -> Iterator[Chunk]:
    """A list of objects, or, as in many a .json file, one object a line.

    Raises:
        UserError: the file is a single object, or its list is damaged so that nobody can say where an item ends.
    """
    first = _first_line(file)
    if first.startswith(b"{"):
        raise UserError(
            f"{path}: one JSON object, and a list of objects is wanted, or one object a line; convert the file"
        )
    start = file.tell()
    while (piece := file.read(CHUNK_BYTES)).isspace():
        start += len(piece)
    file.seek(start)
    if piece.lstrip().startswith(b"["):
        yield from in_chunks(path, _items(path, file), file.tell, items=True)
    else:
        yield from _lines(path, file)


def _first_line(file: IO[bytes]) -> bytes:
    """The first line with something on it, if the JSON value that begins there goes on behind the line; else b""."""
    start = file.tell()
    while (line := file.readline(CHUNK_BYTES)).isspace():
        pass
    file.seek(start)
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        goes_on = line.endswith(b"\n") and error.pos >= len(error.doc.rstrip())
        return line.lstrip() if goes_on else b""
    except (ValueError, RecursionError):
        pass
    return b""


# What the end of an item of a JSON list is found by: outside of objects and lists, and within them.
BETWEEN, WITHIN = re.compile(rb'["\[\]{},]'), re.compile(rb'["\[\]{}]')
BACKSLASH = ord("\\")


def _items(path: Path, file: IO[bytes]) -> Iterator[Unread]:
    """The items of a JSON list, numbered from 1. They are only told apart here: each is parsed as a line of JSONL is.

    So what is wrong with an item that is JSON is wrong with that row alone.
    """
    number, mark = 0, b""
    data, start = file.read(CHUNK_BYTES), 0
    start = data.index(b"[") + 1
    while mark != b"]":
        number += 1
        while (end := _end_of_item(data, start)) is None:
            size = len(data) - start
            more = file.read(min(max(CHUNK_BYTES, size), LONGEST_ROW + 1 - size))
            if not more:
                what = TOO_LONG if size > LONGEST_ROW else "cut off"
                raise UserError(f"{path}:{number}: item {number} of the list is {what}; mend its quotes and brackets")
            data, start = data[start:] + more, 0
        item, mark = data[start:end].strip(), data[end : end + 1]
        start = end + 1
        if mark == b"}":
            raise UserError(f"{path}:{number}: a brace too many behind item {number} of the list; mend the file")
        if item:
            yield number, item
        elif number > 1 or mark == b",":
            raise UserError(f"{path}:{number}: a comma too many at item {number} of the list; mend the file")
    rest = data[start:]
    while rest.isspace() or not rest:
        if not (rest := file.read(CHUNK_BYTES)):
            return
    raise UserError(f"{path}: more stands behind the list, which has {number} items; mend the file")


def _end_of_item(data: bytes, start: int) -> int | None:
    """Where the comma or bracket stands that ends the item; None if that is not in `data`."""
    place, depth = start, 0
    while match := (WITHIN if depth else BETWEEN).search(data, place):
        place = match.end()
        mark = match[0]
        if mark == b'"':
            place = data.find(b'"', place) + 1
            while place and data[place - 2] == BACKSLASH and _is_escaped(data, place - 1):
                place = data.find(b'"', place) + 1
            if not place:
                return None
        elif mark in b"[{":
            depth += 1
        elif depth:
            depth -= 1
        else:
            return place - 1
    return None


def _is_escaped(data: bytes, place: int) -> bool:
    """Whether an odd number of backslashes stands before."""
    first = place
    while data[first - 1] == BACKSLASH:
        first -= 1
    return (place - first) % 2 == 1
