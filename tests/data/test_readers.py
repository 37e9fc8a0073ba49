"""What holds in every format: bad files end in one line, good ones give their rows, and no bytes do anything else."""

from __future__ import annotations

import contextlib
import csv
import json
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import stages.prepare
from howto.core.errors import UserError
from howto.data.chunks import CHUNK_BYTES, LONGEST_ROW
from howto.data.config import Columns, Prepare
from howto.data.readers import READERS, read_chunks
from howto.data.records import SHOWN, BadRow, Fields
from howto.params import read_params
from howto.sources.files import ROW_FILES
from tests.conftest import ROOT, run_stage
from tests.support.fetching import run_by_anyone
from tests.support.raw_files import (
    BOM,
    COLUMNS,
    EXTRA,
    GOOD,
    NAMES,
    OTHER,
    RAW,
    ROWS,
    START,
    WRITERS,
    Content,
    Raw,
    as_json,
    csv_text,
    everything,
    file_name,
    in_pieces,
    json_list,
    jsonl,
    make_workplace,
    metrics,
    parquet,
    prepare,
    prepare_beside_a_good_file,
    read,
    table_file,
    texts,
    written,
)

FORMATS = tuple(READERS)


# --- Bad files --------------------------------------------------------------------------------------------

EMPTY = "the file is empty; remove it or bring its rows"
NO_ROWS = "no rows in it; remove it or bring its rows"


def utf(rows: Sequence[Raw], encoding: str, writer: Callable[[Sequence[Raw]], bytes] = jsonl) -> bytes:
    return writer(rows).decode().encode(encoding)


# What a file holds, and what is said of it, be bad rows rejected or not. A good file stands beside it.
BAD_FILES: dict[str, tuple[Content, str]] = {
    "jsonl: empty": (b"", f": {EMPTY}"),
    "json: empty": (b"", f": {EMPTY}"),
    "csv: empty": (b"", f": {EMPTY}"),
    "parquet: empty": (b"", f": {EMPTY}"),
    "jsonl: only a byte order mark": (b"\xef\xbb\xbf", f": {NO_ROWS}"),
    "jsonl: only blank lines": (b"\n \n\t\r\n", f": {NO_ROWS}"),
    "json: only blanks": (b"\n \n", f": {NO_ROWS}"),
    "csv: only blank lines": (b"\n  \n\r\n", f": {NO_ROWS}"),
    "json: an empty list": (b"[ ]\n", f": {NO_ROWS}"),
    "csv: a header alone": (csv_text([]), f": {NO_ROWS}"),
    "parquet: a schema alone": (parquet([]), f": {NO_ROWS}"),
    "jsonl: UTF-16": (utf(ROWS, "utf-16"), ": the text is UTF-16; save it as UTF-8"),
    "json: UTF-16, big end first": (b"\xfe\xff" + utf(ROWS, "utf-16-be"), ": the text is UTF-16; save"),
    "jsonl: UTF-16 without a mark": (utf(ROWS, "utf-16-le"), ": zero bytes at its beginning, so it is UTF-16"),
    "jsonl: UTF-16 without a mark, big end first": (utf(ROWS, "utf-16-be"), ": zero bytes at its beginning"),
    "jsonl: UTF-32": (utf(ROWS, "utf-32"), ": the text is UTF-32; save it as UTF-8"),
    "csv: UTF-16": (utf(ROWS, "utf-16", csv_text), ": the text is UTF-16; save it as UTF-8"),
    "jsonl: NUL bytes alone": (bytes(100), ": zero bytes at its beginning, so it is UTF-16 or no text"),
    "txt: notes": (b"How? So.", ": rows are read from .jsonl, .json, .csv, .parquet; rename or convert the file"),
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


def test_shards_of_which_one_has_other_columns_stop_the_run_even_if_bad_rows_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_workplace(tmp_path, "reject")
    (tmp_path / RAW / "0.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / RAW / "1.jsonl").write_bytes(jsonl(OTHER))
    status, error = prepare(tmp_path, capsys)
    assert status == 1
    assert error == (
        f"error: {RAW}/1.jsonl:1: field 'instruction' is missing (the row has 'prompt', 'completion'); "
        "no row of this file is one: mend the file, or prepare.columns in params.yaml\n"
    )


# --- The whole stage, as a user runs it -------------------------------------------------------------------


def no_folder(folder: Path) -> None:
    (folder / RAW).rmdir()


def nothing(folder: Path) -> None:
    (folder / RAW / "empty").mkdir()


def only_notes(folder: Path) -> None:
    (folder / RAW / "notes.txt").write_text("How? So.", encoding="utf-8")


def cut_line(folder: Path) -> None:
    (folder / RAW / "some.jsonl").write_bytes(jsonl(ROWS)[:-4])


def cut_parquet(folder: Path) -> None:
    (folder / RAW / "some.parquet").write_bytes(parquet(ROWS)[:3000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (no_folder, f"{RAW}: no file in it; make it with `dvc repro fetch_data`\n"),
        (nothing, f"{RAW}: no file in it; make it with `dvc repro fetch_data`\n"),
        (
            only_notes,
            f"{RAW}/notes.txt: rows are read from .jsonl, .json, .csv, .parquet; rename or convert the file\n",
        ),
        (cut_line, f"{RAW}/some.jsonl:40: not a whole JSON object (Unterminated string"),
        (cut_parquet, f"{RAW}/some.parquet: not a whole Parquet file (Parquet magic bytes not found in footer"),
    ],
)
def test_the_stage_ends_with_one_line_and_a_non_zero_status(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    make_workplace(tmp_path, "stop")
    damage(tmp_path)
    before = everything(tmp_path)
    done = run_stage(tmp_path, "stages.prepare")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {said}")
    assert everything(tmp_path) == before


def test_a_file_without_permission_stops_the_run(tmp_path: Path) -> None:
    make_workplace(tmp_path, "reject")
    path = tmp_path / RAW / "some.jsonl"
    path.write_bytes(jsonl(ROWS))
    path.chmod(0)
    done = run_by_anyone(tmp_path, "stages.prepare")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {RAW}/some.jsonl: no permission; change the owner or the mode of the file\n"
    assert sorted(made.name for made in (tmp_path / "data").iterdir()) == ["raw"]


# --- Good files -------------------------------------------------------------------------------------------


def test_the_stage_keeps_every_row_of_files_in_all_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_workplace(tmp_path, "stop")
    for number, (suffix, write) in enumerate(WRITERS.items()):
        (tmp_path / RAW / f"some{suffix}").write_bytes(write(ROWS[number * 10 : number * 10 + 10]))
    assert prepare(tmp_path, capsys) == (0, "")
    assert metrics(tmp_path)["rows"] == {"raw": GOOD, "kept": GOOD, "rejected": 0}


def test_rows_are_numbered_by_line_or_by_place(tmp_path: Path) -> None:
    two = [{**ROWS[0], "context": "a\nb\r\nc"}, ROWS[1]]
    blank = {
        "some.jsonl": b"\n\n" + b"\n".join([jsonl(two[:1]), jsonl(two[1:])]),
        "some.json": b"\n\n" + json_list(two),
        "some.csv": b"\n" + csv_text(two, lineterminator="\r\n\r\n"),
        "some.parquet": parquet(two, row_group_size=1),
    }
    numbers = {}
    for name, content in blank.items():
        (tmp_path / name).write_bytes(content)
        numbers[name] = [row.number for row in read(tmp_path / name)]
    # The texts of a row that CSV spreads over four lines, with a blank one behind each row.
    assert numbers == {"some.jsonl": [3, 5], "some.json": [1, 2], "some.csv": [4, 9], "some.parquet": [1, 2]}


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_may_be_longer_than_the_longest_row(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"some{suffix}"
    path.write_bytes(WRITERS[suffix](ROWS))
    with in_pieces(64, max(len(as_json(row)) for row in ROWS) + 5):
        assert texts(read(path)) == ROWS


def test_only_columns_that_params_name_are_read(tmp_path: Path) -> None:
    columns = Columns(instruction="prompt", context=None, response="completion", category=None)
    rows = [{"prompt": "How?", "completion": "So.", "context": 3, "category": [None]}]
    for suffix in FORMATS:
        path = tmp_path / f"some{suffix}"
        if suffix == ".parquet":
            path.write_bytes(table_file(pyarrow.Table.from_pylist(rows)))
        elif suffix == ".csv":
            path.write_bytes(b"context,completion,prompt\n3,So.,How?\n")
        else:
            path.write_bytes(WRITERS[suffix](rows))
        assert read(path, columns) == [Fields(2 if suffix == ".csv" else 1, "How?", "", "So.", "")]


def test_files_are_fetched_in_the_formats_that_are_read() -> None:
    assert set(ROW_FILES) == set(READERS)


# --- Memory -----------------------------------------------------------------------------------------------


def peak(path: Path) -> int:
    """The most bytes of Python objects in memory while a file is read."""
    tracemalloc.start()
    try:
        with contextlib.suppress(UserError):
            for chunk in read_chunks(path, COLUMNS):
                for _ in chunk.fields(COLUMNS):
                    pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_memory_does_not_grow_with_a_row(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"some{suffix}"
    path.write_bytes(WRITERS[suffix]([ROWS[0], START + b'"' + b"x" * (60 << 20) + b'"}', ROWS[1]]))
    assert peak(path) < 3 * LONGEST_ROW


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_memory_does_not_grow_with_a_file_of_text(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"some{suffix}"
    peaks = []
    for times in (8, 24):
        path.write_bytes(WRITERS[suffix]([{**row, "context": "Some words. " * 2000} for row in ROWS * times]))
        peaks.append(peak(path))
    assert path.stat().st_size > 20_000_000
    assert peaks[1] < 1.2 * peaks[0]


# --- Any text, any bytes ----------------------------------------------------------------------------------


# What means something in one of the formats, or looks as if it did.
PIECES = [
    "a", "\u00e9", "\U0001f600", '"', "'", ",", ";", "\\", "\\\\", '\\"', "\n", "\r\n", "\r", "\t", " ", "[", "]", "{",
    "}", "],[", "},{", "\u2028", "\x85", "\x1c", "\ufeff", "null", "\\u0000", "\\ud800", "\\n", "x" * 50,
]  # fmt: skip
TEXTS = st.lists(
    st.sampled_from(PIECES) | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3),
    max_size=6,
).map("".join)
SOME_ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, TEXTS)), min_size=1, max_size=5)
# With pieces as small as these every place in a file is one where reading was broken off.
SIZES = st.sampled_from([1, 2, 3, 7, 64, CHUNK_BYTES])
FEW = settings(max_examples=60, deadline=None, derandomize=True)
MANY = settings(FEW, max_examples=300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a test."""
    return tmp_path_factory.mktemp("readers")


@MANY
@given(rows=SOME_ROWS, size=SIZES)
def test_the_same_rows_are_read_from_every_format(rows: list[Raw], size: int, folder: Path) -> None:
    files = {
        "plain.jsonl": jsonl(rows),
        "ascii.jsonl": b"\r\n".join(json.dumps(row).encode() for row in rows),
        "lines.json": jsonl(rows),
        "list.json": json_list(rows),
        "short.json": json.dumps(rows, separators=(",", ":")).encode(),
        "pretty.json": json.dumps(rows, indent=2, ensure_ascii=False).encode(),
        "excel.csv": csv_text(rows),
        "unix.csv": csv_text(rows, dialect="unix"),
        "plain.parquet": parquet(rows, use_dictionary=False, compression="none"),
        "groups.parquet": parquet(rows, row_group_size=2),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
        with in_pieces(size):
            assert texts(read(folder / name)) == rows, name


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.just(0.5) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


@MANY
@given(items=st.lists(ANYTHING, min_size=1, max_size=5), size=SIZES, indent=st.sampled_from([None, 0, 1]))
@example(items=[["\\\\", '"\\'], {'"': "]"}], size=2, indent=None)
def test_a_json_list_comes_apart_into_its_items(items: list[Any], size: int, indent: int | None, folder: Path) -> None:
    path = folder / "some.json"
    path.write_bytes(json.dumps(items, indent=indent, ensure_ascii=False).encode())
    with in_pieces(size):
        raw = [row for chunk in read_chunks(path, COLUMNS) for row in chunk.rows]
    found = [(row[0], json.loads(row[1])) for row in raw if isinstance(row, tuple) and isinstance(row[1], bytes)]
    assert found == list(enumerate(items, 1))


def outcome(path: Path, content: bytes) -> list[Fields | BadRow] | str:
    """What a file of these bytes is read as: rows, or the message with which it stops the run. Nothing else happens."""
    path.write_bytes(content)
    try:
        rows = read(path)
    except UserError as stop:
        message = str(stop)
        assert message.startswith(f"{path}:") and "; " in message
        assert len(message.splitlines()) == 1 and len(message) < len(str(path)) + 700
        return message
    for row in rows:
        if isinstance(row, BadRow):
            assert row.problem and len(row.problem.splitlines()) == 1 and len(row.problem) < 700
            assert len(row.text) <= 10 * SHOWN
            row.problem.encode()
            row.text.encode()
        else:
            for text in (row.instruction, row.context, row.response, row.category):
                assert isinstance(text, str) and "\0" not in text
                text.encode()
    return rows


# What a file is damaged with: that which steers a reader of one of the formats.
DAMAGE = [
    b'"', b"\\", b"[", b"]", b"{", b"}", b",", b"\n", b"\r", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    b"\xff\xfe", b"\\u0000", b"\\ud800", b"NaN", b"1e999", b"9" * 5000, b"[" * 100_000, b'{"a":' * 5000, b" ", b"'",
    b"PAR1", b"\xff" * 8, b"\0" * 8,
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, goods: list[bytes]) -> bytes:
    """A good file with bits flipped, pieces cut out, put in or repeated, or its end cut off."""
    data = draw(st.sampled_from(goods))
    for _ in range(draw(st.integers(1, 4))):
        # From the beginning, or from the end, where Parquet says what it holds.
        place = draw(st.integers(0, len(data)) | st.integers(max(0, len(data) - 600), len(data)))
        end = min(len(data), place + draw(st.integers(1, 60)))
        what = draw(st.sampled_from(["flip", "cut", "put", "repeat", "end"]))
        if what == "flip" and place < len(data):
            data = data[:place] + bytes([data[place] ^ (1 << draw(st.integers(0, 7)))]) + data[place + 1 :]
        elif what == "cut":
            data = data[:place] + data[end:]
        elif what == "put":
            data = data[:place] + draw(st.sampled_from(DAMAGE)) + data[place:]
        elif what == "repeat":
            data = data[:end] + data[place:]
        elif what == "end" and draw(st.booleans()):
            data = data[:place]
    return data


SHORT = [{**row, "context": 'a "b",\n[c]\\ \u00e9'} for row in ROWS[:4]]
GOODS = {
    ".jsonl": [jsonl(SHORT), jsonl(EXTRA[:3])],
    ".json": [json_list(SHORT), json.dumps(EXTRA[:3], indent=1).encode(), jsonl(SHORT)],
    ".csv": [csv_text(SHORT), BOM + csv_text(SHORT, quoting=csv.QUOTE_ALL, lineterminator="\n")],
    ".parquet": [
        parquet(SHORT),
        parquet(SHORT, compression="none", use_dictionary=False, write_page_checksum=True),
        parquet(SHORT * 40, compression="zstd", row_group_size=100, data_page_version="2.0"),
    ],
}
LONGEST = st.sampled_from([400, LONGEST_ROW])


@pytest.mark.parametrize("suffix", FORMATS)
@MANY
@given(data=st.data(), size=SIZES, longest=LONGEST)
def test_a_damaged_file_gives_rows_and_bad_rows_or_one_line(
    suffix: str, data: st.DataObject, size: int, longest: int, folder: Path
) -> None:
    content = data.draw(damaged(GOODS[suffix]))
    with in_pieces(size, longest):
        outcome(folder / f"some{suffix}", content)


@pytest.mark.parametrize("suffix", FORMATS)
@MANY
@given(content=st.binary(max_size=200) | st.lists(st.sampled_from(DAMAGE)).map(b"".join), size=SIZES)
def test_any_bytes_give_rows_and_bad_rows_or_one_line(suffix: str, content: bytes, size: int, folder: Path) -> None:
    with in_pieces(size):
        outcome(folder / f"any{suffix}", content)


@MANY
@given(content=damaged(GOODS[".jsonl"]) | st.lists(st.sampled_from(DAMAGE)).map(b"".join), size=SIZES, longest=LONGEST)
def test_every_line_of_jsonl_with_something_on_it_is_one_row_or_one_bad_row(
    content: bytes, size: int, longest: int, folder: Path
) -> None:
    with in_pieces(size, longest):
        rows = outcome(folder / "lines.jsonl", content)
    if not isinstance(rows, str):
        lines = content.removeprefix(BOM).split(b"\n")
        assert [row.number for row in rows] == [number for number, line in enumerate(lines, 1) if line.strip()]


REJECT = read_params(ROOT / "params.yaml").section(Prepare).model_copy(update={"bad_rows": "reject"})
NASTY = st.fixed_dictionaries(
    {"instruction": TEXTS | ANYTHING, "response": TEXTS | ANYTHING},
    optional={"context": TEXTS | ANYTHING, "category": TEXTS | ANYTHING, "\0": ANYTHING},
)


@settings(FEW, suppress_health_check=[HealthCheck.too_slow])
@given(rows=st.lists(NASTY, max_size=20), damage=st.none() | damaged([jsonl(SHORT)]), form=st.booleans())
def test_the_stage_loses_no_row_whatever_stands_in_it(rows: list[Raw], damage: bytes | None, form: bool) -> None:
    content = jsonl(ROWS) + b"".join(json.dumps(row, ensure_ascii=form).encode() + b"\n" for row in rows)
    content += damage or b""
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / RAW).mkdir(parents=True)
        (Path(name) / RAW / "some.jsonl").write_bytes(content)
        with contextlib.chdir(name):
            stages.prepare.prepare(REJECT)
        counts = metrics(Path(name))
        files = {file: written(Path(name), file) for file in ("train", "validation", "test", "rejected")}
    raw = sum(bool(line.strip()) for line in content.split(b"\n"))
    kept = {file: len(lines) for file, lines in files.items() if file != "rejected"}
    assert counts["rows"] == {"raw": raw, "kept": sum(kept.values()), "rejected": len(files["rejected"])}
    assert raw == sum(kept.values()) + len(files["rejected"])
    assert counts["splits"] == kept
    assert sum(counts["rejected"].values()) == len(files["rejected"])
    assert len({row["source"] for row in files["rejected"]}) == len(files["rejected"])
