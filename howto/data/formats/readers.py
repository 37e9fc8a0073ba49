"""Read raw files: JSON by this module, CSV, Parquet and Arrow by the `datasets` library.

Every format becomes JSON lines, so a row has one form whatever file it is from. Memory does not grow with a file,
except with a JSON list, which is read as a whole.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from howto.core.errors import UserError, one_line
from howto.data.formats.raw_rows import LONGEST_ROW
from howto.data.formats.row_formats import BadRow, RowFormat, RowFormats, listed

CHUNK_BYTES = 1 << 20
BATCH_ROWS = 64  # of CSV, Parquet and Arrow


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file as JSON, some of them blank."""

    path: Path
    first: int  # number of the first row, from 1: its line if the file has JSON lines, else its place among the rows
    rows: list[bytes]


def read_chunks(path: Path, formats: RowFormats) -> Iterator[Chunk]:
    """Yield the rows of a file in chunks of about a megabyte.

    Raise UserError if the format is unknown, the file is damaged or has no rows, or (CSV, Parquet, Arrow) a column is
    missing.
    """
    if (ending := row_ending(path.name)) is None:
        raise UserError(f"{path}: expected a name that ends in {', '.join(READERS)}. Rename or convert the file.")
    first, rows, size, found = 1, [], 0, False
    try:
        for row in READERS[ending](path, formats):
            rows.append(row)
            found = found or not row.isspace()
            size += len(row)
            if size >= CHUNK_BYTES:
                yield Chunk(path, first, rows)
                first, rows, size = first + len(rows), [], 0
    except (UserError, MemoryError):
        raise
    except BadRow as bad:  # about the columns of the whole file
        raise UserError(f"{path}: {bad}. Correct it in params.yaml, or the file.") from None
    except Exception as error:  # of a library, of any kind, on a damaged file
        if isinstance(error, OSError) and error.errno is not None:  # of the machine
            raise
        problem = f"damaged, or not what its name says ({one_line(error)})"
        raise UserError(f"{path}: {problem}. Bring the file again.") from None
    if not found:
        raise UserError(f"{path}: expected rows, got none. Remove the file or bring its rows.")
    yield Chunk(path, first, rows)


def row_ending(name: str) -> str | None:
    """Return the ending of a file's name by which its format is known, or None."""
    return next((ending for ending in READERS if name.lower().endswith(ending)), None)


def _opened_zstd(path: Path) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(str(path), "zstd")


OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _opened_zstd}


def _opened(path: Path) -> io.BufferedReader:
    """Open a file that may be compressed, at the end of its byte order mark."""
    opener = OPENERS.get(path.suffix.lower())
    file = io.BufferedReader(opener(path) if opener else path.open("rb", buffering=0), CHUNK_BYTES)
    if file.peek(3).startswith(codecs.BOM_UTF8):
        file.read(3)
    return file


def json_rows(file: io.BufferedReader) -> Iterator[bytes]:
    """Yield the lines of a JSON lines file, or the items of a JSON list."""
    if file.peek(CHUNK_BYTES).lstrip().startswith(b"["):
        yield from (json.dumps(item).encode() for item in json.load(file))
    while line := file.readline(LONGEST_ROW + 1):
        yield line
        while len(line) > LONGEST_ROW and not line.endswith(b"\n"):  # skip the rest of a line that is too long
            line = file.readline(LONGEST_ROW + 1)


def _json(path: Path, _formats: RowFormats) -> Iterator[bytes]:
    with _opened(path) as file:
        yield from json_rows(file)


def _csv(path: Path, formats: RowFormats, delimiter: str) -> Iterator[bytes]:
    csv.field_size_limit(LONGEST_ROW)  # the parser of the engine "python", which is the one that is strict about quotes
    with _opened(path) as file:
        rows = filter(None, csv.reader(io.TextIOWrapper(file, "utf-8", newline=""), delimiter=delimiter))
        header, first = next(rows, []), next(rows, [])
    found = _format_of(path, header, formats)
    if len(first) > len(header):  # pandas would take the first column for an index
        raise UserError(f"{path}: expected {len(header)} values in the first row, got {len(first)}. Fix the header.")
    options: dict[str, Any] = {"engine": "python", "sep": delimiter, "chunksize": BATCH_ROWS}
    options |= {"keep_default_na": False, "na_filter": False}
    converters = dict.fromkeys(range(len(header)), lambda text: text)  # else "007" becomes 7
    for row in _stream("csv", path, found, **options, converters=converters):
        # A row with too few values gets None for the others: such a column is missing there.
        there = {name: text for name, text in row.items() if text is not None or name in found.unread}
        yield json.dumps(there).encode()


def _parquet(path: Path, formats: RowFormats) -> Iterator[bytes]:
    import pyarrow.dataset
    import pyarrow.parquet

    found = _format_of(path, pyarrow.parquet.read_schema(path).names, formats)
    options = {"use_buffered_stream": True, "pre_buffer": False, "page_checksum_verification": True}
    scan = pyarrow.dataset.ParquetFragmentScanOptions(**options)
    yield from map(
        _as_json,
        _stream("parquet", path, found, columns=found.read, batch_size=BATCH_ROWS, fragment_scan_options=scan),
    )


def _arrow(path: Path, formats: RowFormats) -> Iterator[bytes]:
    import pyarrow

    with path.open("rb") as file:
        try:
            schema = pyarrow.ipc.open_stream(file).schema
        except (OSError, pyarrow.ArrowInvalid):  # the other form of Arrow's files, with an index at their end
            schema = pyarrow.ipc.open_file(file).schema
    yield from map(_as_json, _stream("arrow", path, _format_of(path, schema.names, formats)))


def _as_json(row: dict[str, Any]) -> bytes:
    """Return a row as JSON. A date, bytes and the like become an object, which the check of the row rejects."""
    return json.dumps(row, default=lambda value: {type(value).__name__: str(value)}).encode()


def _format_of(path: Path, names: list[str], formats: RowFormats) -> RowFormat:
    """Return the format of a file that has the columns `names`.

    Raise BadRow if it has none, and UserError if a column to read is there twice.
    """
    found = formats.of(tuple(names))
    if twice := next((name for name in found.read if names.count(name) > 1), None):
        raise UserError(f"{path}: expected one column {twice!r}, got {listed(names)}. Rename one of them.")
    return found


def _stream(kind: str, path: Path, found: RowFormat, **options: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file as the `datasets` library reads them; the columns that are not read are null."""
    import datasets

    datasets.config.TORCH_AVAILABLE = False  # else it imports torch
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    unread = dict.fromkeys(found.unread)
    with TemporaryDirectory() as folder:  # for the library's lock file; and the file's own name may be a pattern, a[1]
        link = Path(folder, "rows" + "".join(path.suffixes[-2:]).lower())
        if link.suffix == ".zst":  # for which the library would need another one
            link = link.with_suffix("")
            with _opened(path) as packed, link.open("wb") as file:
                shutil.copyfileobj(packed, file)
        else:
            link.symlink_to(path.resolve())
        stream = datasets.load_dataset(
            kind, data_files=str(link), split="train", streaming=True, cache_dir=folder, **options
        )
        labels = {
            name: feature
            for name, feature in (stream.features or {}).items()
            if name in found.read and isinstance(feature, datasets.ClassLabel)
        }
        for table in stream.with_format("arrow").iter(BATCH_ROWS):
            for row in table.select(found.read).to_pylist():
                names = {name: label.int2str(row[name]) for name, label in labels.items() if row[name] is not None}
                yield row | names | unread


Reader = Callable[[Path, RowFormats], Iterator[bytes]]
_TEXT: dict[str, Reader] = {
    ".jsonl": _json,
    ".ndjson": _json,
    ".json": _json,
    ".csv": partial(_csv, delimiter=","),
    ".tsv": partial(_csv, delimiter="\t"),
}
READERS: dict[str, Reader] = {
    **{f"{ending}{compression}": reader for ending, reader in _TEXT.items() for compression in ("", *OPENERS)},
    ".parquet": _parquet,
    ".arrow": _arrow,
}
