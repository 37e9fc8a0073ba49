"""Every format gives its rows; a bad file, or a bad row, ends in one line; no row is lost."""

import io
import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from howto.core.errors import UserError
from howto.data.config import Columns
from howto.data.formats import readers
from howto.data.formats.raw_rows import LONGEST_ROW, RawTexts, parse_row
from howto.data.formats.readers import READERS, read_chunks
from howto.data.formats.row_formats import BadRow, RowFormats
from howto.sources.files import is_row_file
from tests.conftest import run_stage
from tests.support.fetching import Place, lay
from tests.support.raw_files import (
    COMPRESS,
    NAMES,
    RAW,
    ROWS,
    WRITERS,
    arrow,
    csv_text,
    json_list,
    jsonl,
    parquet,
    prepare,
    table_file,
    with_params,
)

COLUMNS = Columns(instruction="instruction", context="context", response="response", category="category")
REJECT = with_params(bad_rows="reject")
BOM = b"\xef\xbb\xbf"
START = b'{"instruction": "How?", "response": '

Found = list[tuple[int, RawTexts | BadRow]]


def read(content: bytes, name: str, folder: Path, columns: Columns = COLUMNS) -> Found:
    """The rows of a file with their numbers."""
    (folder / name).write_bytes(content)
    found: Found = []
    formats = RowFormats(columns)
    for chunk in read_chunks(folder / name, formats):
        for number, line in enumerate(chunk.rows, chunk.first):
            if line.isspace():
                continue
            try:
                found.append((number, parse_row(line, formats)[0]))
            except BadRow as bad:
                found.append((number, bad))
    return found


def arrow_file(table: pyarrow.Table) -> bytes:
    """The form of Arrow's files that has an index at its end."""
    file = io.BytesIO()
    with pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


# --- Good files ------------------------------------------------------------------------------------------

LINES, LIST, TABLE = jsonl(ROWS), json_list(ROWS), pyarrow.table({n: [row[n] for row in ROWS] for n in NAMES})
MORE = [{"id": 7, "tags": [["a"], []], **row, "score": 0.5, "url": None} for row in ROWS]
NULLS = [{name: text or None for name, text in row.items()} for row in ROWS]
GOOD_FILES: dict[str, bytes] = {
    "plain.jsonl": LINES,
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "blank_lines.jsonl": b"\n \n" + LINES.replace(b"\n", b"\n\n\t\r\n"),
    "other_columns.jsonl": jsonl(MORE),
    "nulls.jsonl": jsonl(NULLS),
    "list.jsonl": LIST,
    "lines.json": BOM + b"\n" + LINES,
    "list.json": BOM + LIST,
    "indented.json": json.dumps(MORE, indent=4).encode(),
    "plain.csv": csv_text(ROWS),
    "byte_order_mark.csv": BOM + csv_text(ROWS),
    "cr.csv": csv_text(ROWS, lineterminator="\r"),
    "blank_lines.csv": b"\n" + csv_text(ROWS, lineterminator="\n\n"),
    "A[1]*.CSV": csv_text(ROWS),
    "plain.parquet": parquet(ROWS),
    "plain.arrow": arrow(ROWS),
    "with_an_index.arrow": arrow_file(TABLE),
    "plain.ndjson": LINES,
    "plain.tsv": csv_text(ROWS, delimiter="\t"),
    "categories.parquet": table_file(TABLE.set_column(3, "category", TABLE["category"].dictionary_encode())),
    **{f"some.jsonl{ending}": compress(LINES) for ending, compress in COMPRESS.items()},
    **{f"some.json{ending}": compress(LIST) for ending, compress in COMPRESS.items()},
    **{f"some.ndjson{ending}": compress(LINES) for ending, compress in COMPRESS.items()},
    **{f"some.csv{ending}": compress(csv_text(ROWS)) for ending, compress in COMPRESS.items()},
    **{f"some.TSV{ending}": compress(csv_text(ROWS, delimiter="\t")) for ending, compress in COMPRESS.items()},
}


@pytest.mark.parametrize("chunk_bytes", [100, 1 << 20])
@pytest.mark.parametrize("name", GOOD_FILES)
def test_a_good_file_gives_its_rows_numbered_by_line_or_by_place(
    name: str, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", chunk_bytes)
    found = read(GOOD_FILES[name], name, tmp_path)
    assert [{name: getattr(row, name) for name in NAMES} for _, row in found] == ROWS
    first, step = {"blank_lines.jsonl": (3, 3), "lines.json": (2, 1)}.get(name, (1, 1))
    assert [number for number, _ in found] == list(range(first, first + step * len(ROWS), step))


@pytest.mark.parametrize("suffix", WRITERS)
def test_only_columns_that_params_name_are_read(suffix: str, tmp_path: Path) -> None:
    columns = Columns(instruction="prompt", context=None, response="completion", category=None)
    rows = [{"context": 3, "completion": "007", "prompt": "NA", "category": [None]}]
    table = pyarrow.Table.from_pylist(rows)
    content = {".csv": b"context,completion,prompt\n3,007,NA\n", ".tsv": b"context\tcompletion\tprompt\n3\t007\tNA\n"}
    content |= {".parquet": table_file(table), ".arrow": arrow_file(table)}
    found = read(content.get(suffix) or WRITERS[suffix](rows), f"some{suffix}", tmp_path, columns)
    assert found == [(1, RawTexts("NA", "", "007", "", ()))]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".arrow"])
def test_a_column_may_hold_lists_of_further_references(suffix: str, tmp_path: Path) -> None:
    rows = [{"instruction": "a", "response": "b", "more": more} for more in (["c", "d"], None)]
    write = {".parquet": table_file, ".arrow": arrow_file}.get(suffix)
    content = write(pyarrow.Table.from_pylist(rows)) if write else WRITERS[suffix](rows)
    columns = COLUMNS.model_copy(update={"references": "more"})
    found = read(content, f"some{suffix}", tmp_path, columns)
    assert [row.references for _, row in found if isinstance(row, RawTexts)] == [("c", "d"), ()]


@pytest.mark.parametrize("compression", ["", ".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".txt"])
def test_fetch_data_takes_the_formats_that_prepare_reads(ending: str, compression: str) -> None:
    for name in (f"rows{ending}{compression}", f"ROWS{ending}{compression}".upper()):
        assert is_row_file(name) == (f"{ending}{compression}" in READERS)


FETCH_AND_PREPARE = """
import socket, sys
import stages.fetch_data, stages.prepare
def refuse(*_): raise AssertionError("the network is used")
socket.socket.connect = socket.getaddrinfo = refuse
stages.fetch_data.main()
stages.prepare.main()
print(*{"torch", "transformers", "tensorflow", "jax", "datasets", "pandas", "pyarrow"} & sys.modules.keys())
"""


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_rows_are_fetched_and_prepared_without_network_home_torch_and_for_jsonl_any_heavy_library(
    suffix: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(place.folder, {f"mine/some{suffix}": WRITERS[suffix](ROWS), "watched.py": FETCH_AND_PREPARE.encode()})
    place.write(data="{source: mine}")
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(place.folder / "home"))
    done = run_stage(place.folder, "watched")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert loaded <= {"datasets", "pandas", "pyarrow"} and bool(loaded) is (suffix != ".jsonl")
    assert not (place.folder / "home").exists()


# --- Bad files -------------------------------------------------------------------------------------------


OTHERS = [{"frage": row["instruction"], "antwort": row["response"]} for row in ROWS]
CSV, PARQUET = csv_text(ROWS), parquet(ROWS)
CHECKED = parquet(ROWS, write_page_checksum=True, compression="none", use_dictionary=False, write_statistics=False)
DAMAGED = "damaged, or not what its name says"
# The content of a file, and a part of the message. The rows of such a file are never rejected one by one.
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty.csv": (b"", "no column 'instruction' (there are none)"),
    "blank_lines.jsonl": (b"\n \n\t\r\n", "expected rows, got none"),
    "notes.txt": (b"How? So.", "expected a name that ends in .jsonl, "),
    "other_columns.jsonl": (jsonl(OTHERS), ":1: no column 'instruction' (there are 'frage', 'antwort'); prep"),
    "other_columns.csv": (b"frage,antwort\n", "no column 'instruction' (there are 'frage', 'antwort'); prep"),
    "header.csv": (b"instruction,Context,response\na,b,c\n", "'Context' is not read, because prepare.columns.context"),
    "header.parquet": (
        table_file(TABLE.rename_columns(["instruction", "CONTEXT ", "response", "category"])),
        "'CONTEXT ' is not read, because prepare.columns.context",
    ),
    "column_twice.csv": (b"instruction,response,response\na,b,c\n", "expected one column 'response'"),
    "numbers.parquet": (table_file(TABLE.set_column(2, "response", [range(40)])), "'response': expected text, got 0"),
    "utf_16.jsonl": (LINES.decode().encode("utf-16"), ":1: not a JSON object"),
    "one_object.json": (json.dumps({"data": ROWS}, indent=1).encode(), ":1: not a JSON object"),
    "cut.json": (LIST[:-12], DAMAGED),
    "deep.json": (b"[" * 100_000, DAMAGED),
    "latin_1.csv": (csv_text([b"How?,,caf\xe9,a"]), DAMAGED),
    "open_quote.csv": (CSV + b'How?,,"So.,a\nWhy?,,So.,b\n', DAMAGED),
    "text_after_quote.csv": (CSV + b'How?,,"So" it is.,a\n', DAMAGED),
    "a_value_too_many.csv": (CSV + b"How?,,So, there.,a\n", "Expected 4 fields in line"),
    "values_without_a_name.csv": (csv_text([b"How?,,So, there.,a"] * 9), "expected 4 values in the first row, got 5"),
    "long_value.csv": (CSV + b'How?,,"' + b"x" * (LONGEST_ROW + 1) + b'",a\n', DAMAGED),
    "half.arrow": (arrow(ROWS)[:2000], DAMAGED),
    "text.arrow": (b"How?", DAMAGED),
    "half.parquet": (PARQUET[: len(PARQUET) // 2], DAMAGED),
    "checksum.parquet": (CHECKED.replace(b"How do I", b"Who do I", 1), DAMAGED),
    **{f"cut.jsonl{ending}": (compress(LINES)[:-9], DAMAGED) for ending, compress in COMPRESS.items()},
    **{f"plain.jsonl{ending}": (LINES, DAMAGED) for ending in COMPRESS},
    **{f"cut.csv{ending}": (compress(CSV)[:-9], DAMAGED) for ending, compress in COMPRESS.items()},
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_beside_a_good_one_stops_the_run_even_if_bad_rows_are_rejected(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content, phrase = BAD_FILES[name]
    with pytest.raises(UserError) as stop:
        prepare(tmp_path, {"rows/a_good_file.jsonl": LINES, f"rows/{name}": content}, REJECT)
    message = str(stop.value)
    assert message.startswith(f"{RAW}/{name}:") and phrase in message and len(message.splitlines()) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["raw"]
    assert capfd.readouterr().err == ""  # libraries say nothing of their own


# --- Bad rows --------------------------------------------------------------------------------------------

# What is in the place of the 21st row, and a part of the message.
BAD_ROWS: dict[str, tuple[Any, str]] = {
    "jsonl: not UTF-8": (START + b'"a\xffb"}', "not a JSON object"),
    "jsonl: no response": (b'{"instruction": "How?"}', "no column 'response' (there are 'instruction')"),
    "jsonl: a number for a text": (START + b"3}", "column 'response': expected text, got 3"),
    "jsonl: an escaped NUL": (START + b'"a\\u0000b"}', "column 'response': expected text, got a NUL character"),
    "jsonl: half a character": (START + b'"a\\ud83d"}', "column 'response': expected text, got half of a surrogate"),
    "jsonl: a key twice": (START + b'"a", "respons\\u0065": "b"}', "a key occurs twice"),
    "jsonl: deep": (START + b'"b", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not a JSON object"),
    "jsonl: a long line": (START + b'"' + b"x" * (50 << 20) + b'"}', "the row is longer than 16 MiB"),
    "json: null": (b"null", "expected a JSON object, got None"),
    "csv: too few values": (b"How?,", "no column 'response' (there are 'instruction', 'context')"),
    "csv: a NUL byte": (b"How?,,a\0b,a", "column 'response': expected text, got a NUL character"),
    "parquet: a long row": ({"instruction": "a", "response": "x" * (17 << 20)}, "the row is longer than 16 MiB"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_stops_the_run_with_its_number_or_is_rejected_alone(name: str, tmp_path: Path) -> None:
    bad, phrase = BAD_ROWS[name]
    suffix = f".{name.partition(':')[0]}"
    path = RAW / f"some{suffix}"
    files = {f"rows/some{suffix}": WRITERS[suffix]([*ROWS[:20], bad, *ROWS[20:]])}
    with pytest.raises(UserError) as stop:
        prepare(tmp_path, files)
    message = str(stop.value)
    assert message.startswith(f"{path}:21: {phrase}") and "bad_rows" in message and len(message.splitlines()) == 1
    assert not (tmp_path / "data/prepared").exists()

    made = prepare(tmp_path, files, REJECT)
    (rejected,) = made.rejected
    assert (rejected["source"], rejected["reason"]) == (f"{path}:21", "bad_row")
    assert rejected["detail"].startswith(phrase) and len(rejected["text"]) <= 800
    assert made.metrics["rows"] == {"raw": 41, "kept": 40, "rejected": 1} and made.metrics["rejected"]["bad_row"] == 1


def peak(path: Path) -> int:
    """The most bytes of Python objects while a file is read."""
    tracemalloc.start()
    try:
        for _ in read_chunks(path, RowFormats(COLUMNS)):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["some.jsonl.gz", "some.csv"])
def test_memory_does_not_grow_with_a_file(name: str, tmp_path: Path) -> None:
    read(csv_text(ROWS), "first.csv", tmp_path)  # imports count too
    peaks = []
    for times in (4, 12):
        rows = [{**row, "context": "Some words. " * 2500} for row in ROWS * times]
        (tmp_path / name).write_bytes(csv_text(rows) if name == "some.csv" else COMPRESS[".gz"](jsonl(rows)))
        peaks.append(peak(tmp_path / name))
    assert peaks[1] < 1.2 * peaks[0]


def test_memory_does_not_grow_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(jsonl([ROWS[0], START + b'"' + b"x" * (40 << 20) + b'"}', ROWS[1]]))
    monkeypatch.setattr(readers, "LONGEST_ROW", 1 << 20)
    assert peak(path) < 10 << 20


# --- Any bytes -------------------------------------------------------------------------------------------

# What steers a reader of one of the formats.
PIECES = [
    b'"', b"\\", b"[", b"]", b"{", b"}", b",", b"\n", b"\r", b" ", b"'", b"\0", b"\xff", b"\xed\xa0\x80", BOM,
    b"\xff\xfe", b"\\u0000", b"\\ud800", b"NaN", b"1e999", b"9" * 5000, b"[" * 100_000, b'{"a":' * 5000, b"PAR1",
]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """A good file with bits flipped, or with pieces cut out, put in or repeated."""
    for _ in range(draw(st.integers(1, 4))):
        # From the beginning, or from the end, where Parquet has its schema.
        place = draw(st.integers(0, len(data)) | st.integers(max(0, len(data) - 600), len(data)))
        end = min(len(data), place + draw(st.integers(1, 60)))
        piece = draw(st.sampled_from(PIECES))
        flip = data[:place] + bytes(byte ^ 0xFF for byte in data[place : place + 1]) + data[place + 1 :]
        cut, put, repeat = data[:place] + data[end:], data[:place] + piece + data[place:], data[:end] + data[place:]
        data = draw(st.sampled_from([flip, cut, put, repeat, data[:place]]))
    return data


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITERS if suffix != ".tsv"])
@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_bytes_give_rows_and_bad_rows_or_one_line(suffix: str, data: st.DataObject, tmp_path: Path) -> None:
    content = data.draw(damaged(WRITERS[suffix](ROWS[:4])) | st.lists(st.sampled_from(PIECES)).map(b"".join))
    try:
        found = read(content, f"some{suffix}", tmp_path)
    except UserError as stop:
        assert str(stop).startswith(f"{tmp_path}/some{suffix}:") and len(str(stop).splitlines()) == 1
        return
    for _, row in found:
        for text in [str(row)] if isinstance(row, BadRow) else [*row[:4], *row.references]:
            assert "\0" not in text and text.encode() is not None
    if suffix == ".jsonl" and not content.removeprefix(BOM).lstrip().startswith(b"["):
        lines = enumerate(content.removeprefix(BOM).split(b"\n"), 1)
        assert [number for number, _ in found] == [number for number, line in lines if line.strip()]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.lists(ANYTHING, max_size=20), damage=st.just(b"") | damaged(jsonl(ROWS[:4])))
def test_the_stage_loses_no_row(rows: list[Any], damage: bytes) -> None:
    content = LINES + b"".join(json.dumps(row).encode() + b"\n" for row in rows) + damage
    with tempfile.TemporaryDirectory() as name:
        made = prepare(Path(name), {"rows/some.jsonl": content}, REJECT)
    raw = sum(bool(line.strip()) for line in content.split(b"\n"))
    assert made.metrics["rows"] == {"raw": raw, "kept": len(made.kept), "rejected": len(made.rejected)}
    assert raw == len(made.kept) + len(made.rejected) == len(made.kept) + sum(made.metrics["rejected"].values())
    assert len({row["source"] for row in made.rejected}) == len(made.rejected)
    assert made.metrics["splits"] == {split: len(found) for split, found in made.splits.items()}
