"""Rows of Parquet, page by page, whatever size its row groups have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from howto.core.errors import UserError
from howto.data.chunks import CHUNK_BYTES, CHUNK_ROWS, LONGEST_ROW, TOO_LONG, Chunk, Unread, check_columns
from howto.data.config import Columns
from howto.data.records import BadRow, shown

if TYPE_CHECKING:
    import pyarrow


def parquet_chunks(path: Path, file: IO[bytes], columns: Columns) -> Iterator[Chunk]:
    """The rows, numbered from 1.

    Raises:
        UserError: the file lacks a column, has one that holds no text, or is damaged.
    """
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
                rows.append(BadRow(number, f"the row is {TOO_LONG}", shown(row)) if too_long else (number, row))
            if len(rows) >= CHUNK_ROWS or taken >= CHUNK_BYTES:
                yield Chunk(path, rows, size * len(rows) // max(total, 1))
                rows, taken = [], 0
        yield Chunk(path, rows, size * len(rows) // max(total, 1))
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a whole Parquet file ({reason:.120}); bring it again") from None
    if number != total:
        raise UserError(f"{path}: {number} of its {total} rows can be read; bring it again")


def _text_columns(path: Path, schema: pyarrow.Schema, columns: Columns) -> list[str]:
    """The wanted columns that a Parquet file has."""
    from pyarrow import types

    check_columns(path, schema.names, columns)
    wanted = [name for name in columns.names() if name in schema.names]
    for name in wanted:
        kind = schema.field(name).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        text = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
        if not any(is_text(kind) for is_text in text):
            raise UserError(
                f"{path}: column {name!r} holds {str(kind)!r:.80}, and text is wanted; mend prepare.columns"
            )
    return wanted


def _texts_of(column: pyarrow.Array) -> list[str | None]:
    """The values of a column of texts. What is not UTF-8 in them becomes lone surrogates, as in CSV."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values: list[bytes | None] = column.cast(pyarrow.large_binary()).to_pylist()
    return [value if value is None else value.decode("utf-8", "surrogateescape") for value in values]
