"""Raw files in pieces: some consecutive rows each, by number and by size, so that memory does not grow with a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from howto.core.errors import UserError
from howto.data.config import Columns
from howto.data.records import BadRow, Fields, NotJSON, Problem, listed, read_fields, shown

CHUNK_BYTES = 1 << 20
CHUNK_ROWS = 512
LONGEST_ROW = 16 << 20  # bytes; a longer one is no row that a model could be trained on
TOO_LONG = f"longer than {LONGEST_ROW >> 20} MiB"

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
            UserError: an item of a list is no JSON, so that nobody can say where it ends.
        """
        for row in self.rows:
            if isinstance(row, BadRow):
                yield row
                continue
            number, value = row
            try:
                read: Fields | BadRow = read_fields(number, value, columns)
            except Problem as error:
                problem = f"item {number} of the list: {error}" if self.items else str(error)
                if self.items and isinstance(error, NotJSON):
                    raise UserError(f"{self.path}:{number}: {problem}; mend the file") from None
                read = BadRow(number, problem, shown(value))
            yield read


def in_chunks(
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


def check_columns(path: Path, names: list[str], columns: Columns) -> None:
    """Check the columns that a file names before its rows.

    Raises:
        UserError: one that is read is there twice, or that of the instruction or of the response is not there.
    """
    if columns.references is not None:
        raise UserError(
            f"{path}: prepare.columns.references names lists, which JSON has and this file has not; set it to null"
        )
    for name in columns.names():
        if names.count(name) > 1:
            raise UserError(f"{path}: the column {name!r} stands there twice; rename one")
    for key in ("instruction", "response"):
        wanted = getattr(columns, key)
        if wanted not in names:
            raise UserError(
                f"{path}: no column {wanted!r} in it, it has {listed(names)}; mend prepare.columns.{key} or the file"
            )
