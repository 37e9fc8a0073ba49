"""Parquet: what is damaged ends in one line that says so, what is odd but right is read, a page at a time."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow
import pytest

from howto.data.readers import read_chunks
from tests.support.raw_files import (
    COLUMNS,
    EXTRA,
    NAMES,
    NULLS,
    RAW,
    ROWS,
    WITHOUT,
    Content,
    Raw,
    file_name,
    jsonl,
    parquet,
    prepare_beside_a_good_file,
    read,
    table_file,
    texts,
    write_case,
)

GOOD_PARQUET = parquet(ROWS)
TEXT_COLUMN = pyarrow.array(["How?"])
NOT_PARQUET = "not a whole Parquet file ("


def parquet_with(response: pyarrow.Array) -> bytes:
    return table_file(pyarrow.table({"instruction": TEXT_COLUMN, "response": response}))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


# What a file holds, and what is said of it, be bad rows rejected or not. A good file stands beside it.
BAD_FILES: dict[str, tuple[Content, str]] = {
    "parquet: cut in half": (GOOD_PARQUET[: len(GOOD_PARQUET) // 2], f": {NOT_PARQUET}"),
    "parquet: without its last byte": (GOOD_PARQUET[:-1], f": {NOT_PARQUET}"),
    "parquet: without its beginning": (GOOD_PARQUET[4000:], f": {NOT_PARQUET}"),
    "parquet: with a hole": (GOOD_PARQUET[:500] + GOOD_PARQUET[900:], f": {NOT_PARQUET}"),
    "parquet: a damaged footer": (flipped(GOOD_PARQUET, len(GOOD_PARQUET) - 300), f": {NOT_PARQUET}"),
    "parquet: a footer longer than the file": (GOOD_PARQUET[:-8] + b"\xff\xff\xff\x7fPAR1", f": {NOT_PARQUET}"),
    "parquet: another checksum": (
        flipped(parquet(ROWS, write_page_checksum=True, compression="none", use_dictionary=False), 200),
        f": {NOT_PARQUET}",
    ),
    # Found by fuzzing: Parquet's own reader says nothing. The file's number of rows is 41 now, not 40 (as zigzag).
    "parquet: a row too few": (
        GOOD_PARQUET.replace(b"\x16\x50", b"\x16\x52", 1),
        ": 40 of its 41 rows can be read; bring it again",
    ),
    "parquet: the first four bytes": (b"PAR1", f": {NOT_PARQUET}"),
    "parquet: encrypted": (GOOD_PARQUET[:-4] + b"PARE", f": {NOT_PARQUET}"),
    "parquet: JSONL under this name": (jsonl(ROWS), f": {NOT_PARQUET}"),
    "parquet: zero bytes": (bytes(1000), f": {NOT_PARQUET}"),
    "parquet: other columns": (
        table_file(pyarrow.table({"instruction": TEXT_COLUMN, "completion": TEXT_COLUMN})),
        ": no column 'response' in it, it has 'instruction', 'completion'; mend prepare.columns.response or the file",
    ),
    "parquet: a column twice": (
        table_file(pyarrow.Table.from_arrays([TEXT_COLUMN] * 3, ["instruction", "response", "response"])),
        ": the column 'response' stands there twice; rename one",
    ),
    "parquet: numbers": (
        parquet_with(pyarrow.array([3])),
        ": column 'response' holds 'int64', and text is wanted; mend prepare.columns",
    ),
    "parquet: numbers in a dictionary": (
        parquet_with(pyarrow.array([3]).dictionary_encode()),
        ": column 'response' holds 'int64', and text is wanted; mend prepare.columns",
    ),
    "parquet: lists": (
        parquet_with(pyarrow.array([["So."]])),
        ": column 'response' holds 'list<element: string>', and text is wanted; mend prepare.columns",
    ),
    "parquet: structs": (
        parquet_with(pyarrow.array([{"text": "So."}])),
        ": column 'response' holds 'struct<text: string>', and text is wanted; mend prepare.columns",
    ),
    "parquet: bytes": (
        parquet_with(pyarrow.array([b"So."])),
        ": column 'response' holds 'binary', and text is wanted; mend prepare.columns",
    ),
}


@pytest.mark.parametrize("bad_rows", ["stop", "reject"])
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_stops_the_run_whatever_becomes_of_bad_rows(
    name: str, bad_rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, said = BAD_FILES[name]
    status, error, changed = prepare_beside_a_good_file(tmp_path, name, content, bad_rows, capsys)
    assert (status, error.count("\n"), changed) == (1, 1, set())
    assert error.startswith(f"error: {RAW}/{file_name(name)}{said}")


def text_columns(kind: pyarrow.DataType) -> pyarrow.Table:
    return pyarrow.table({name: pyarrow.array([row[name] for row in ROWS]).cast(kind) for name in NAMES})


ODD: dict[str, tuple[Content, list[Raw]]] = {
    "parquet: plain": (GOOD_PARQUET, ROWS),
    "parquet: with a group for each row": (parquet(ROWS, row_group_size=1), ROWS),
    "parquet: with dictionaries": (
        table_file(text_columns(pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))),
        ROWS,
    ),
    "parquet: with large strings": (table_file(text_columns(pyarrow.large_string())), ROWS),
    "parquet: with string views": (table_file(text_columns(pyarrow.string_view())), ROWS),
    "parquet: without Arrow's schema": (parquet(ROWS, store_schema=False, compression="zstd"), ROWS),
    "parquet: with nulls": (table_file(pyarrow.Table.from_pylist(NULLS)), WITHOUT),
    "parquet: with other columns too": (table_file(pyarrow.Table.from_pylist(EXTRA)), ROWS),
}


@pytest.mark.parametrize("name", ODD)
def test_a_file_that_looks_odd_and_is_right_gives_its_rows(name: str, tmp_path: Path) -> None:
    content, rows = ODD[name]
    found = read(write_case(tmp_path, name, content))
    assert texts(found) == [dict.fromkeys(NAMES, "") | row for row in rows]


def test_memory_does_not_grow_with_a_row_group_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    choose = random.Random(0)
    peaks = []
    for count in (5000, 15000):
        rows = [{"instruction": "How?", "response": choose.randbytes(1000).hex()} for _ in range(count)]
        path.write_bytes(table_file(pyarrow.Table.from_pylist(rows), compression="none", use_dictionary=False))
        before = pyarrow.total_allocated_bytes()
        peaks.append(max(pyarrow.total_allocated_bytes() - before for _ in read_chunks(path, COLUMNS)))
    assert path.stat().st_size > 30_000_000
    assert peaks[1] < 1.2 * peaks[0]
