"""Reading raw files: JSONL, JSON, CSV and Parquet, in pieces, with a word on everything that is no row.

A file that is bad as a whole (not text, not the format that its name says, without the columns, or so damaged that
nobody can say where its rows begin) stops the run. A bad row is yielded as such, with its line and the reason: what
becomes of it is the caller's choice.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from howto.core.errors import UserError
from howto.data.chunks import Chunk
from howto.data.config import Columns
from howto.data.readers.csv import csv_chunks
from howto.data.readers.json import json_chunks, jsonl_chunks
from howto.data.readers.parquet import parquet_chunks

BYTE_ORDER_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32"} | {
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

READERS: dict[str, Callable[[Path, IO[bytes], Columns], Iterator[Chunk]]] = {
    ".jsonl": jsonl_chunks,
    ".json": json_chunks,
    ".csv": csv_chunks,
    ".parquet": parquet_chunks,
}


def read_chunks(path: Path, columns: Columns) -> Iterator[Chunk]:
    """Yield the rows of a file in chunks of about a megabyte. Memory does not grow with the file.

    Raises:
        UserError: the file has no rows, is in no format that is read here, is damaged, is not UTF-8 text,
            or has not the columns (of which CSV and Parquet tell before any row).
    """
    with path.open("rb") as file:
        head = file.read(4)
        if not head:
            raise UserError(f"{path}: the file is empty; remove it or bring its rows")
        file.seek(3 if head.startswith(codecs.BOM_UTF8) else 0)
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise UserError(f"{path}: rows are read from {', '.join(READERS)}; rename or convert the file")
        if reader is not parquet_chunks:
            _check_encoding(path, head)
        found = False
        for chunk in reader(path, file, columns):
            found = found or bool(chunk.rows)
            yield chunk
    if not found:
        raise UserError(f"{path}: no rows in it; remove it or bring its rows")


def _check_encoding(path: Path, head: bytes) -> None:
    for mark, name in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            raise UserError(f"{path}: the text is {name}; save it as UTF-8")
    if head[:2].count(0) == 1 or head.count(0) >= 2:
        raise UserError(f"{path}: zero bytes at its beginning, so it is UTF-16 or no text; save it as UTF-8")
