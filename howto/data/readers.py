"""Read raw files: JSON by this module, CSV and Parquet by the `datasets` library.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from howto.core.errors import UserError, one_line
from howto.data.config import Columns
from howto.data.raw_rows import LONGEST_ROW, listed

CHUNK_BYTES = 1 << 20
BATCH_ROWS = 64  # of CSV and Parquet


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file as JSON, some of them blank."""

    path: Path
    first: int  # number of the first row, from 1: its line if the file has JSON lines, else its place among the rows
    rows: list[bytes]


def read_chunks(path: Path, columns: Columns) -> Iterator[Chunk]:
    """Yield the rows of a file in chunks of about a megabyte.

    Raise UserError if the format is unknown, the file is damaged or has no rows, or (CSV, Parquet) a column is missing.
    """
    ending = next((ending for ending in READERS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise UserError(f"{path}: expected a name that ends in {', '.join(READERS)}. Rename or convert the file.")
    first, rows, size, found = 1, [], 0, False
    try:
        for row in READERS[ending](path, columns):
            rows.append(row)
            found = found or not row.isspace()
            size += len(row)
            if size >= CHUNK_BYTES:
                yield Chunk(path, first, rows)
                first, rows, size = first + len(rows), [], 0
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of a library, of any kind, on a damaged file
        if isinstance(error, OSError) and error.errno is not None:  # of the machine
            raise
        problem = f"damaged, or not what its name says ({one_line(error)})"
        raise UserError(f"{path}: {problem}. Bring the file again.") from None
    if not found:
        raise UserError(f"{path}: expected rows, got none. Remove the file or bring its rows.")
    yield Chunk(path, first, rows)


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


def _json(path: Path, _columns: Columns) -> Iterator[bytes]:
    """Yield the lines of a JSON lines file, or the items of a JSON list."""
    with _opened(path) as file:
        if file.peek(CHUNK_BYTES).lstrip().startswith(b"["):
            yield from (json.dumps(item).encode() for item in json.load(file))
        while line := file.readline(LONGEST_ROW + 1):
            yield line
            while len(line) > LONGEST_ROW and not line.endswith(b"\n"):  # skip the rest of a line that is too long
                line = file.readline(LONGEST_ROW + 1)


def _csv(path: Path, columns: Columns) -> Iterator[bytes]:
    csv.field_size_limit(LONGEST_ROW)  # the parser of the engine "python", which is the one that is strict about quotes
    with _opened(path) as file:
        rows = filter(None, csv.reader(io.TextIOWrapper(file, "utf-8", newline="")))
        header, first = next(rows, []), next(rows, [])
    names = _present(path, header, columns)
    if len(first) > len(header):  # pandas would take the first column for an index
        raise UserError(f"{path}: expected {len(header)} values in the first row, got {len(first)}. Fix the header.")
    options = {"engine": "python", "keep_default_na": False, "na_filter": False, "chunksize": BATCH_ROWS}
    converters = dict.fromkeys(range(len(header)), lambda text: text)  # else "007" becomes 7
    for row in _stream("csv", path, names, **options, converters=converters):
        # A row with too few values gets None for the others: such a column is missing there.
        yield json.dumps({name: text for name, text in row.items() if text is not None}).encode()


def _parquet(path: Path, columns: Columns) -> Iterator[bytes]:
    import pyarrow.dataset
    import pyarrow.parquet

    names = _present(path, pyarrow.parquet.read_schema(path).names, columns)
    options = {"use_buffered_stream": True, "pre_buffer": False, "page_checksum_verification": True}
    scan = pyarrow.dataset.ParquetFragmentScanOptions(**options)
    for row in _stream("parquet", path, names, columns=names, batch_size=BATCH_ROWS, fragment_scan_options=scan):
        # A date, bytes and the like become an object, which the check of the row rejects.
        yield json.dumps(row, default=lambda value: {type(value).__name__: str(value)}).encode()


def _present(path: Path, names: list[str], columns: Columns) -> list[str]:
    """Return the columns to read of a file that has the columns `names`.

    Raise UserError if one is missing or is there twice.
    """
    for key in ("instruction", "response"):
        if names.count(name := getattr(columns, key)) != 1:
            raise UserError(f"{path}: expected one column {name!r}, got {listed(names)}. Fix prepare.columns.{key}.")
    return [name for name in dict.fromkeys([*columns.texts(), columns.references]) if name in names]


def _stream(kind: str, path: Path, names: list[str], **options: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file, with the columns `names`, as the `datasets` library reads them."""
    import datasets

    datasets.config.TORCH_AVAILABLE = False  # else it imports torch
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    with TemporaryDirectory() as folder:  # for the library's lock file; and the file's own name may be a pattern, a[1]
        link = Path(folder, "rows" + "".join(path.suffixes[-2:]).lower())
        link.symlink_to(path.resolve())
        stream = datasets.load_dataset(
            kind, data_files=str(link), split="train", streaming=True, cache_dir=folder, **options
        )
        for table in stream.with_format("arrow").iter(BATCH_ROWS):
            yield from table.select(names).to_pylist()


READERS: dict[str, Callable[[Path, Columns], Iterator[bytes]]] = {
    **{f"{ending}{compression}": _json for ending in (".jsonl", ".json") for compression in ("", *OPENERS)},
    **{f".csv{compression}": _csv for compression in ("", ".gz", ".bz2", ".xz")},
    ".parquet": _parquet,
}
