"""Reading raw files: JSONL, JSON, CSV and Parquet, in pieces, with a word on everything that is no row.

A file that is bad as a whole (not text, not the format that its name says, without the columns, or so damaged that
nobody can say where its rows begin) stops the run. A bad row is yielded as such, with its line and the reason: what
becomes of it is the caller's choice.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from howto.params.prepare import Columns
from howto.stop import Stop

if TYPE_CHECKING:
    import pyarrow

CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 512
LONGEST_ROW = 16 << 20  # bytes; a longer one is no row that a model could be trained on
TOO_LONG = f"longer than {LONGEST_ROW >> 20} MiB"
SHOWN = 200  # characters of a bad row that are kept

BYTE_ORDER_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"} | {
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(frozen=True)
class BadRow:
    """What stands where a row should be, and what is wrong with it."""

    number: int
    problem: str
    text: str


@dataclass(frozen=True)
class Fields:
    """The texts of a row; one that the row does not have is "". `number` is its line, or its place in the file."""

    number: int
    instruction: str
    context: str
    response: str
    category: str


Unread = tuple[int, bytes | dict[str, str | None]]  # a row's number, and its JSON or its values by column


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows of a file, read but not yet looked at, and what is known already to be no row.

    `size` is the part of the file that they took, in bytes; `items` that they are numbered by their place in a list,
    not by line.
    """

    path: Path
    rows: list[Unread | BadRow]
    size: int
    items: bool = False

    def fields(self, columns: Columns) -> Iterator[Fields | BadRow]:
        """The rows' texts, in order.

        Raises:
            Stop: an item of a list is no JSON, so that nobody can say where it ends.
        """
        for row in self.rows:
            if isinstance(row, BadRow):
                yield row
                continue
            number, value = row
            try:
                read: Fields | BadRow = Fields(number, *_texts(value, columns))
            except _Problem as error:
                problem = f"item {number} of the list: {error}" if self.items else str(error)
                if self.items and isinstance(error, _Syntax):
                    raise Stop(f"{self.path}:{number}: {problem}; mend the file") from None
                read = BadRow(number, problem, _shown(value))
            yield read


class _Problem(Exception):
    """What is wrong with a row."""


class _Syntax(_Problem):
    """What is wrong with a row that is not JSON."""


def read_chunks(path: Path, columns: Columns) -> Iterator[Chunk]:
    """Yield the rows of a file in chunks of about a megabyte. Memory does not grow with the file.

    Raises:
        Stop: the file has no rows, is in no format that is read here, is damaged, is not UTF-8 text,
            or has not the columns (of which CSV and Parquet tell before any row).
    """
    with path.open("rb") as file:
        head = file.read(4)
        if not head:
            raise Stop(f"{path}: the file is empty; remove it or bring its rows")
        file.seek(3 if head.startswith(codecs.BOM_UTF8) else 0)
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise Stop(f"{path}: rows are read from {', '.join(READERS)}; rename or convert the file")
        if reader is not _parquet:
            _check_encoding(path, head)
        found = False
        for chunk in reader(path, file, columns):
            found = found or bool(chunk.rows)
            yield chunk
    if not found:
        raise Stop(f"{path}: no rows in it; remove it or bring its rows")


def _check_encoding(path: Path, head: bytes) -> None:
    for mark, name in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            raise Stop(f"{path}: the text is {name}; save it as UTF-8")
    if head[:2].count(0) == 1 or head.count(0) >= 2:
        raise Stop(f"{path}: zero bytes at its beginning, so it is UTF-16 or no text; save it as UTF-8")


# --- The formats --------------------------------------------------------------------------------------


def _jsonl(path: Path, file: IO[bytes], columns: Columns) -> Iterator[Chunk]:
    if _first_line(file).startswith(b"["):
        raise Stop(f"{path}: a JSON list, and .jsonl has one object a line; name the file .json")
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
            rows.append(BadRow(number, f"the line is {TOO_LONG}", _shown(start)))
        elif not line.isspace():
            rows.append((number, line.rstrip()))
        if size >= CHUNK_BYTES:
            yield Chunk(path, rows, size)
            rows, size = [], 0
    yield Chunk(path, rows, size)


def _json(path: Path, file: IO[bytes], columns: Columns) -> Iterator[Chunk]:
    """A list of objects, or, as in many a .json file, one object a line."""
    first = _first_line(file)
    if first.startswith(b"{"):
        raise Stop(f"{path}: one JSON object, and a list of objects is wanted, or one object a line; convert the file")
    start = file.tell()
    while (piece := file.read(CHUNK_BYTES)).isspace():
        start += len(piece)
    file.seek(start)
    if piece.lstrip().startswith(b"["):
        yield from _in_chunks(path, _items(path, file), file.tell, items=True)
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
                raise Stop(f"{path}:{number}: item {number} of the list is {what}; mend its quotes and brackets")
            data, start = data[start:] + more, 0
        item, mark = data[start:end].strip(), data[end : end + 1]
        start = end + 1
        if mark == b"}":
            raise Stop(f"{path}:{number}: a brace too many behind item {number} of the list; mend the file")
        if item:
            yield number, item
        elif number > 1 or mark == b",":
            raise Stop(f"{path}:{number}: a comma too many at item {number} of the list; mend the file")
    rest = data[start:]
    while rest.isspace() or not rest:
        if not (rest := file.read(CHUNK_BYTES)):
            return
    raise Stop(f"{path}: more stands behind the list, which has {number} items; mend the file")


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


def _csv(path: Path, file: IO[bytes], columns: Columns) -> Iterator[Chunk]:
    lines = _CsvLines(file)
    rows = _csv_rows(path, lines)
    _, header = next(rows, (0, None))
    if header is None:
        return
    _check_columns(path, header, columns)
    wanted = [(name, header.index(name)) for name in columns.names() if name in header]

    def unread() -> Iterator[Unread | BadRow]:
        for number, values in rows:
            if len(values) == len(header):
                yield number, {name: values[place] for name, place in wanted}
            else:
                problem = f"{len(values)} values, and the header names {len(header)} columns"
                yield BadRow(number, problem, _shown(values))

    yield from _in_chunks(path, unread(), lines.tell)


class _CsvLines:
    """The lines of a CSV file for `csv.reader`, however they end. A row may take LONGEST_ROW characters of them."""

    def __init__(self, file: IO[bytes]) -> None:
        # What is not UTF-8 becomes lone surrogates, so that the row is known in which it stands.
        self._text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        self.left = LONGEST_ROW

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self.left + 1)
        self.left -= len(line)
        if self.left < 0:
            raise csv.Error(f"a row {TOO_LONG}, as where a quote is not closed")
        if not line:
            raise StopIteration
        return line

    def tell(self) -> int:
        """How far the file has been read, in bytes."""
        return self._text.buffer.tell()


def _csv_rows(path: Path, lines: _CsvLines) -> Iterator[tuple[int, list[str]]]:
    """(line on which the row begins, values) of the rows that are not blank."""
    csv.field_size_limit(LONGEST_ROW)
    reader = csv.reader(lines, strict=True)
    while True:
        lines.left, number = LONGEST_ROW, reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # From here on it cannot be known where a row begins.
            raise Stop(f"{path}:{number}: not CSV ({error}); mend the quotes of the row that begins there") from None
        if len(values) > 1 or any(value.strip() for value in values):
            yield number, values


def _parquet(path: Path, file: IO[bytes], columns: Columns) -> Iterator[Chunk]:
    import pyarrow
    import pyarrow.parquet

    size, number = path.stat().st_size, 0
    rows: list[Unread | BadRow] = []
    try:
        # Page by page, and in this thread: else a row group is in memory as a whole.
        table = pyarrow.parquet.ParquetFile(
            path, pre_buffer=False, buffer_size=CHUNK_BYTES, page_checksum_verification=True
        )
        wanted, total, taken = _text_columns(path, table.schema_arrow, columns), table.metadata.num_rows, 0
        for batch in table.iter_batches(batch_size=64, columns=wanted, use_threads=False):
            taken += batch.nbytes
            for values in zip(*(_texts_of(batch.column(name)) for name in wanted), strict=True):
                number += 1
                row = dict(zip(wanted, values, strict=True))
                too_long = sum(len(value or "") for value in values) > LONGEST_ROW
                rows.append(BadRow(number, f"the row is {TOO_LONG}", _shown(row)) if too_long else (number, row))
            if len(rows) >= CHUNK_ROWS or taken >= CHUNK_BYTES:
                yield Chunk(path, rows, size * len(rows) // max(total, 1))
                rows, taken = [], 0
        yield Chunk(path, rows, size * len(rows) // max(total, 1))
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())
        raise Stop(f"{path}: not a whole Parquet file ({reason:.120}); bring it again") from None
    if number != total:
        raise Stop(f"{path}: {number} of its {total} rows can be read; bring it again")


def _text_columns(path: Path, schema: pyarrow.Schema, columns: Columns) -> list[str]:
    """The wanted columns that a Parquet file has."""
    from pyarrow import types

    _check_columns(path, schema.names, columns)
    wanted = [name for name in columns.names() if name in schema.names]
    for name in wanted:
        kind = schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        text = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
        if not any(is_text(kind) for is_text in text):
            raise Stop(f"{path}: column {name!r} holds {str(kind)!r:.80}, and text is wanted; mend prepare.columns")
    return wanted


def _texts_of(column: pyarrow.Array) -> list[str | None]:
    """The values of a column of texts. What is not UTF-8 in them becomes lone surrogates, as in CSV."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values: list[bytes | None] = column.cast(pyarrow.large_binary()).to_pylist()
    return [value if value is None else value.decode("utf-8", "surrogateescape") for value in values]


READERS: dict[str, Callable[[Path, IO[bytes], Columns], Iterator[Chunk]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _in_chunks(
    path: Path, rows: Iterable[Unread | BadRow], tell: Callable[[], int], *, items: bool = False
) -> Iterator[Chunk]:
    """Rows in chunks, by the number of them and by how far the file has been read."""
    piece: list[Unread | BadRow] = []
    start = 0
    for row in rows:
        piece.append(row)
        if len(piece) == CHUNK_ROWS or tell() - start >= 2 * CHUNK_BYTES:
            yield Chunk(path, piece, tell() - start, items)
            piece, start = [], tell()
    yield Chunk(path, piece, tell() - start, items)


def _check_columns(path: Path, names: list[str], columns: Columns) -> None:
    for name in columns.names():
        if names.count(name) > 1:
            raise Stop(f"{path}: the column {name!r} stands there twice; rename one")
    for key in ("instruction", "response"):
        wanted = getattr(columns, key)
        if wanted not in names:
            raise Stop(
                f"{path}: no column {wanted!r} in it, it has {_listed(names)}; mend prepare.columns.{key} or the file"
            )


# --- The rows -----------------------------------------------------------------------------------------


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
        raise _Syntax(problem or f"not a whole JSON object ({what} at character {error.pos + 1})") from None
    except RecursionError:
        raise _Problem(problem or "nested too deeply") from None
    except ValueError:  # of which Python makes no integer
        raise _Problem(problem or "a number of thousands of digits") from None
    if problem:
        raise _Problem(problem)
    if not isinstance(value, dict):
        raise _Problem(f"a JSON object is wanted, not {_kind(value)}")
    if isinstance(value, _Ambiguous):
        raise _Problem(f"the key {value.twice!r:.80} stands there twice")
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


def _texts(row: bytes | dict[str, str | None], columns: Columns) -> list[str]:
    """instruction, context, response, category."""
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
                raise _Problem(f"field {name!r} is missing (the row has {_listed(record)})")
            value = ""
        if not isinstance(value, str):
            raise _Problem(f"field {name!r}: text is wanted, not {_kind(value)}")
        if "\0" in value:
            raise _Problem(f"field {name!r}: a NUL character (character {value.find(chr(0)) + 1})")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                # JSON can spell half of a character; CSV and Parquet are read so that bytes become one.
                what = "a lone surrogate, half of a character" if isinstance(row, bytes) else "not UTF-8"
                raise _Problem(f"field {name!r}: {what} (character {error.start + 1})") from None
        texts.append(value)
    return texts


def _kind(value: object) -> str:
    kinds: dict[type, str] = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    kinds |= {str: "a text", dict: "an object", _Ambiguous: "an object", type(None): "null"}
    return kinds[type(value)]


def _listed(names: Iterable[str]) -> str:
    """The first of the names, in few characters."""
    return f"{', '.join(f'{name!r:.80}' for name in islice(names, 10)) or 'none':.300}"


def _shown(value: bytes | dict[str, str | None] | list[str]) -> str:
    """The beginning of a bad row as text that can be written."""
    if isinstance(value, bytes):
        return value[:SHOWN].decode("utf-8", "backslashreplace")
    text = json.dumps(value, ensure_ascii=False)
    return text[:SHOWN].encode("utf-8", "backslashreplace").decode()
