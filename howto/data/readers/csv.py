"""Rows of CSV: a header, commas between values, and quotes doubled where they stand between quotes (RFC 4180)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from howto.core.errors import UserError
from howto.data.chunks import LONGEST_ROW, TOO_LONG, Chunk, Unread, check_columns, in_chunks
from howto.data.config import Columns
from howto.data.records import BadRow, shown


def csv_chunks(path: Path, file: IO[bytes], columns: Columns) -> Iterator[Chunk]:
    """The rows behind the header, each numbered by the line on which it begins.

    Raises:
        UserError: the header lacks a column, or quotes are wrong so that nobody can say where a row begins.
    """
    lines = _CsvLines(file)
    rows = _csv_rows(path, lines)
    _, header = next(rows, (0, None))
    if header is None:
        return
    check_columns(path, header, columns)
    wanted = [(name, header.index(name)) for name in columns.names() if name in header]

    def unread() -> Iterator[Unread | BadRow]:
        for number, values in rows:
            if len(values) == len(header):
                yield number, {name: values[place] for name, place in wanted}
            else:
                problem = f"{len(values)} values, and the header names {len(header)} columns"
                yield BadRow(number, problem, shown(values))

    yield from in_chunks(path, unread(), lines.tell)


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
            raise UserError(
                f"{path}:{number}: not CSV ({error}); mend the quotes of the row that begins there"
            ) from None
        if len(values) > 1 or any(value.strip() for value in values):
            yield number, values
