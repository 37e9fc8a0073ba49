"""Malformed files end in one line that says where, odd but right ones are read, and no bytes do anything else."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import random
import string
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import stages.prepare
from howto import readers
from howto.params.file import read_params
from howto.params.prepare import Columns, Prepare
from howto.readers import LONGEST_ROW, READERS, BadRow, Fields, read_chunks
from howto.source import ROW_FILES
from howto.stop import Stop
from tests.conftest import ROOT, run_stage

COLUMNS = Columns(instruction="instruction", context="context", response="response", category="category")
NAMES = ("instruction", "context", "response", "category")
RAW = Path("data/raw/rows")
FORMATS = tuple(READERS)
GOOD = 40

Raw = dict[str, Any]
Content = bytes | Callable[[], bytes]


# --- Files ------------------------------------------------------------------------------------------------


def good_rows() -> list[Raw]:
    """Rows no two of which are near to each other, with what files are quoted and escaped for."""
    choose = random.Random(2)

    def words(count: int) -> str:
        return " ".join("".join(choose.choices(string.ascii_lowercase, k=5)) for _ in range(count))

    return [
        {
            "instruction": f"How do I {words(6)}, \u00e0 la \U0001f600?",
            "context": f'It says "{words(9)}",\nand [then] {{that}} \\n\\.' if number % 3 == 0 else "",
            "response": f"1. {words(8)}.\n2. {words(8)}; 'done', \"so\".",
            "category": "abc"[number % 3],
        }
        for number in range(GOOD)
    ]


ROWS = good_rows()


def as_json(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def jsonl(rows: Sequence[Raw | bytes]) -> bytes:
    return b"".join((row if isinstance(row, bytes) else as_json(row)) + b"\n" for row in rows)


def json_list(rows: Sequence[Raw | bytes]) -> bytes:
    return b"[\n" + b",\n".join(row if isinstance(row, bytes) else as_json(row) for row in rows) + b"\n]\n"


def csv_text(rows: Sequence[Raw | bytes], **form: Any) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, NAMES, **form)
    writer.writeheader()
    text = file.getvalue().encode()
    for row in rows:
        file.seek(0)
        file.truncate()
        if not isinstance(row, bytes):
            writer.writerow(row)
        text += row + b"\n" if isinstance(row, bytes) else file.getvalue().encode()
    return text


def parquet(rows: Sequence[Raw], **form: Any) -> bytes:
    """A text that is given as bytes is written as it is, as no writer of texts would."""
    columns = {}
    for name in NAMES:
        values = [row.get(name) for row in rows]
        raw = [value.encode() if isinstance(value, str) else value for value in values]
        columns[name] = pyarrow.array(raw, pyarrow.binary()).view(pyarrow.string())
    return table_file(pyarrow.table(columns), **form)


def table_file(table: pyarrow.Table, **form: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, **form)
    return file.getvalue()


WRITERS: dict[str, Callable[[Any], bytes]] = {
    ".jsonl": jsonl,
    ".json": json_list,
    ".csv": csv_text,
    ".parquet": parquet,
}


def file_name(case: str) -> str:
    """The file of a case such as "csv: empty"."""
    return f"some.{case.partition(':')[0]}"


# --- Reading ----------------------------------------------------------------------------------------------


def read(path: Path, columns: Columns = COLUMNS) -> list[Fields | BadRow]:
    return [row for chunk in read_chunks(path, columns) for row in chunk.fields(columns)]


@contextlib.contextmanager
def in_pieces(size: int, longest: int = LONGEST_ROW) -> Iterator[None]:
    """Read files in pieces of so many bytes, and no longer rows."""
    with patch.object(readers, "CHUNK_BYTES", size), patch.object(readers, "LONGEST_ROW", longest):
        yield


def texts(rows: Sequence[Fields | BadRow]) -> list[Raw]:
    return [{name: getattr(row, name) for name in NAMES} for row in rows]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with params.yaml and an empty folder for raw rows."""
    write_params(tmp_path, "stop")
    (tmp_path / RAW).mkdir(parents=True)
    return tmp_path


def write_params(folder: Path, bad_rows: str) -> None:
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert "bad_rows: stop" in text
    (folder / "params.yaml").write_text(text.replace("bad_rows: stop", f"bad_rows: {bad_rows}"), encoding="utf-8")


Prepared = Callable[[Path], tuple[int, str]]


@pytest.fixture
def prepare(capsys: pytest.CaptureFixture[str]) -> Prepared:
    """The stage in a folder: exit status, stderr."""

    def run(folder: Path) -> tuple[int, str]:
        status = 0
        with contextlib.chdir(folder), patch.object(sys, "argv", ["prepare"]):
            try:
                stages.prepare.main()
            except SystemExit as end:
                assert isinstance(end.code, int)
                status = end.code
        return status, capsys.readouterr().err

    return run


def everything(folder: Path) -> dict[Path, bytes | None]:
    """All files and folders in it, with the files' content."""
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics/data.json").read_text(encoding="utf-8"))
    return found


def written(folder: Path, name: str) -> list[Raw]:
    return [json.loads(line) for line in (folder / f"data/prepared/{name}.jsonl").read_bytes().splitlines()]


# --- Bad rows ---------------------------------------------------------------------------------------------

START = b'{"instruction": "How?", "response": '
MISSING = "field 'response' is missing (the row has 'instruction')"
HALF = "a lone surrogate, half of a character"

# What stands where the 21st row should be, and what is said of it.
BAD_ROWS: dict[str, tuple[bytes | Raw | Callable[[], bytes | Raw], str]] = {
    "jsonl: invalid UTF-8": (START + b'"a\xffb"}', "byte 39 is not UTF-8"),
    "jsonl: Latin-1": (START + '"caf\u00e9"}'.encode("latin-1"), "byte 41 is not UTF-8"),
    "jsonl: a surrogate as UTF-8": (START + b'"\xed\xa0\x80"}', "byte 38 is not UTF-8"),
    "jsonl: an overlong character": (START + b'"\xc0\xaf"}', "byte 38 is not UTF-8"),
    "jsonl: a cut character": (START + b'"\xf0\x9f\x98"}', "byte 38 is not UTF-8"),
    "jsonl: invalid UTF-8 in a column that is not read": (START + b'"b", "more": "\xff"}', "byte 51 is not UTF-8"),
    "jsonl: UTF-16": ((START + b'"b"}').decode().encode("utf-16"), "byte 1 is not UTF-8"),
    "jsonl: a byte order mark": (
        b"\xef\xbb\xbf" + START + b'"b"}',
        "not a whole JSON object (Unexpected byte order mark at character 1)",
    ),
    "jsonl: a NUL byte": (START + b'"a\0b"}', "not a whole JSON object ("),
    "jsonl: NUL bytes alone": (b"\0\0\0\0", "not a whole JSON object ("),
    "jsonl: an escaped NUL": (START + b'"a\\u0000b"}', "field 'response': a NUL character (character 2)"),
    "jsonl: a lone high surrogate": (START + b'"a\\ud83d"}', f"field 'response': {HALF} (character 2)"),
    "jsonl: a lone low surrogate": (START + b'"\\udc80"}', f"field 'response': {HALF} (character 1)"),
    "jsonl: surrogates in the wrong order": (START + b'"\\ude00\\ud83d"}', f"field 'response': {HALF}"),
    "jsonl: a lone surrogate for a category": (
        START + b'"b", "category": "\\ud83d"}',
        f"field 'category': {HALF} (character 1)",
    ),
    "jsonl: a cut line": (START + b'"Fir', "not a whole JSON object (Unterminated string"),
    "jsonl: half a row": (b'{"instruction": "How?",', "not a whole JSON object ("),
    "jsonl: two rows": (START + b'"b"}' + START + b'"b"}', "not a whole JSON object (Extra data at character 41)"),
    "jsonl: a list": (b'["How?", "So."]', "a JSON object is wanted, not a list"),
    "jsonl: a number": (b"42", "a JSON object is wanted, not a number"),
    "jsonl: a text": (b'"How?"', "a JSON object is wanted, not a text"),
    "jsonl: a truth value": (b"true", "a JSON object is wanted, not true or false"),
    "jsonl: null": (b"null", "a JSON object is wanted, not null"),
    "jsonl: bare words": (b"How? So.", "not a whole JSON object ("),
    "jsonl: Python's quotes": (b"{'instruction': 'How?', 'response': 'So.'}", "not a whole JSON object ("),
    "jsonl: a comment": (b"// from here on by hand", "not a whole JSON object ("),
    "jsonl: a comma at the end": (START + b'"b",}', "not a whole JSON object ("),
    "jsonl: a raw tab": (START + b'"a\tb"}', "not a whole JSON object (Invalid control character at"),
    "jsonl: an unknown escape": (START + b'"a\\xb"}', "not a whole JSON object (Invalid \\escape at"),
    "jsonl: an empty object": (b"{}", "field 'instruction' is missing (the row has none)"),
    "jsonl: no response": (b'{"instruction": "How?"}', MISSING),
    "jsonl: no instruction": (b'{"response": "So."}', "field 'instruction' is missing (the row has 'response')"),
    "jsonl: other columns": (
        b'{"prompt": "How?", "completion": "So."}',
        "field 'instruction' is missing (the row has 'prompt', 'completion')",
    ),
    "jsonl: a column in capitals": (
        b'{"Instruction": "How?", "response": "So."}',
        "field 'instruction' is missing (the row has 'Instruction', 'response')",
    ),
    "jsonl: a number for a text": (START + b"3}", "field 'response': text is wanted, not a number"),
    "jsonl: a fraction for a text": (START + b"-0.5e3}", "field 'response': text is wanted, not a number"),
    "jsonl: not a number for a text": (START + b"NaN}", "field 'response': text is wanted, not a number"),
    "jsonl: false for a text": (START + b"false}", "field 'response': text is wanted, not true or false"),
    "jsonl: a list for a text": (START + b'["So."]}', "field 'response': text is wanted, not a list"),
    "jsonl: an object for a text": (START + b'{"text": "So."}}', "field 'response': text is wanted, not an object"),
    "jsonl: a list for a context": (START + b'"b", "context": []}', "field 'context': text is wanted, not a list"),
    "jsonl: a number for a category": (
        START + b'"b", "category": 7}',
        "field 'category': text is wanted, not a number",
    ),
    "jsonl: a key twice": (START + b'"a", "response": "b"}', "the key 'response' stands there twice"),
    "jsonl: a key twice, once escaped": (
        START + b'"a", "respons\\u0065": "b"}',
        "the key 'response' stands there twice",
    ),
    "jsonl: nested a hundred thousand deep": (
        START + b'"b", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "nested too deeply",
    ),
    "jsonl: a number of 5,000 digits": (
        START + b'"b", "more": ' + b"9" * 5000 + b"}",
        "a number of thousands of digits",
    ),
    "jsonl: a line of 50 MB": (lambda: START + b'"' + b"x" * (50 << 20) + b'"}', "the line is longer than 16 MiB"),
    "json: a number": (b"42", "a JSON object is wanted, not a number"),
    "json: a list": (b'["How?", "So."]', "a JSON object is wanted, not a list"),
    "json: null": (b"null", "a JSON object is wanted, not null"),
    "json: invalid UTF-8": (START + b'"a\xffb"}', "byte 39 is not UTF-8"),
    "json: a lone surrogate": (START + b'"a\\ud83d"}', f"field 'response': {HALF} (character 2)"),
    "json: a key twice": (START + b'"a", "response": "b"}', "the key 'response' stands there twice"),
    "json: no response": (b'{"instruction": "How?"}', MISSING),
    "json: an object for a text": (START + b'{"a": [1]}}', "field 'response': text is wanted, not an object"),
    "json: nested deeply": (START + b'"b", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "csv: a value too few": (b"How?,,So.", "3 values, and the header names 4 columns"),
    "csv: a value too many": (b"How?,,So, there.,a", "5 values, and the header names 4 columns"),
    "csv: one text": (b"and so on", "1 values, and the header names 4 columns"),
    "csv: other delimiters": (b"How?;;So.;a", "1 values, and the header names 4 columns"),
    "csv: invalid UTF-8": (b"How?,,caf\xe9,a", "field 'response': not UTF-8 (character 4)"),
    "csv: a NUL byte": (b"How?,,a\0b,a", "field 'response': a NUL character (character 2)"),
    "parquet: invalid UTF-8": (
        {"instruction": "How?", "response": b"caf\xe9"},
        "field 'response': not UTF-8 (character 4)",
    ),
    "parquet: a surrogate": (
        {"instruction": "How?", "response": b"\xed\xa0\xbd"},
        "field 'response': not UTF-8 (character 1)",
    ),
    "parquet: a NUL": ({"instruction": "a\0", "response": "So."}, "field 'instruction': a NUL character (character 2)"),
    "parquet: a row of 17 MiB": (
        lambda: {"instruction": "How?", "response": "x" * (17 << 20)},
        "the row is longer than 16 MiB",
    ),
}


def with_bad_row(folder: Path, name: str) -> tuple[str, str]:
    """Write a file with this bad row among 40 good ones; where it stands and what is said of it."""
    bad, problem = BAD_ROWS[name]
    path = RAW / file_name(name)
    rows = [*ROWS[:20], bad() if callable(bad) else bad, *ROWS[20:]]
    (folder / path).write_bytes(WRITERS[path.suffix](rows))
    number = csv_text(ROWS[:20]).count(b"\n") + 1 if path.suffix == ".csv" else 21
    return f"{path}:{number}", f"item 21 of the list: {problem}" if path.suffix == ".json" else problem


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_stops_the_run_with_its_line_and_leaves_nothing(
    name: str, workplace: Path, prepare: Prepared
) -> None:
    where, problem = with_bad_row(workplace, name)
    before = everything(workplace)
    status, error = prepare(workplace)
    assert (status, error.count("\n")) == (1, 1)
    assert error.startswith(f"error: {where}: {problem}")
    assert error.endswith("; mend or remove it, or say `bad_rows: reject` in params.yaml\n")
    assert everything(workplace) == before


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_rejected_and_counted_and_the_rows_around_it_are_kept(
    name: str, workplace: Path, prepare: Prepared
) -> None:
    where, problem = with_bad_row(workplace, name)
    write_params(workplace, "reject")
    assert prepare(workplace) == (0, "")
    counts = metrics(workplace)
    assert counts["rows"] == {"raw": GOOD + 1, "kept": GOOD, "rejected": 1}
    assert counts["rejected"]["bad_row"] == 1
    (rejected,) = written(workplace, "rejected")
    assert (rejected["source"], rejected["reason"]) == (where, "bad_row")
    assert rejected["detail"].startswith(problem)
    bad = BAD_ROWS[name][0]
    assert bool(rejected["text"]) == bool(bad)
    kept = {row["input"] for split in ("train", "validation", "test") for row in written(workplace, split)}
    assert len(kept) == GOOD


# --- Bad files --------------------------------------------------------------------------------------------

GOOD_PARQUET = parquet(ROWS)
TEXT_COLUMN = pyarrow.array(["How?"])
OTHER = [{"prompt": row["instruction"], "completion": row["response"]} for row in ROWS]
EMPTY = "the file is empty; remove it or bring its rows"
NO_ROWS = "no rows in it; remove it or bring its rows"
NOT_PARQUET = "not a whole Parquet file ("


def parquet_with(response: pyarrow.Array) -> bytes:
    return table_file(pyarrow.table({"instruction": TEXT_COLUMN, "response": response}))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


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
    "jsonl: gzip under a wrong name": (gzip.compress(jsonl(ROWS), mtime=0), ":1: byte 2 is not"),
    "txt: notes": (b"How? So.", ": rows are read from .jsonl, .json, .csv, .parquet; rename or convert the file"),
    "jsonl: a JSON list": (json_list(ROWS), ": a JSON list, and .jsonl has one object a line; name"),
    "jsonl: a JSON list on one line": (as_json(ROWS), ":1: a JSON object is wanted, not a list; "),
    "jsonl: other columns in every row": (jsonl(OTHER), ":1: field 'instruction' is missing (the row has 'prompt', "),
    "json: other columns in every item": (json_list(OTHER), ":1: item 1 of the list: field 'instruction' is missing "),
    "json: a list cut after an item": (json_list(ROWS)[:-3] + b",", ":41: item 41 of the list is cut off; mend"),
    "json: a list cut before its end": (json_list(ROWS)[:-3], ":40: item 40 of the list is cut off; mend"),
    "json: a list cut in a text": (json_list(ROWS)[:-12], ":40: item 40 of the list is cut off; mend its quotes"),
    "json: a list cut in an escape": (b'[{"instruction": "a\\', ":1: item 1 of the list is cut off; mend its"),
    "json: a word": (json_list([*ROWS, b"undefined"]), ":41: item 41 of the list: not a whole JSON object (Expecting"),
    "json: a NUL byte": (
        json_list([*ROWS, START + b'"a\0b"}']),
        ":41: item 41 of the list: not a whole JSON object (Invalid control character at character 39); mend the file",
    ),
    "json: a line break in a text": (
        json_list([*ROWS, START + b'"a\nb"}']),
        ":41: item 41 of the list: not a whole JSON object (Invalid control character at character 39); mend the file",
    ),
    "json: brackets that do not match": (
        json_list([*ROWS, START + b'"b"]']),
        ":41: item 41 of the list: not a whole JSON object (Expecting ',' delimiter at character 40); mend the file",
    ),
    "json: a comma is missing": (
        json_list([*ROWS, START + b'"b"}\n' + START + b'"b"}']),
        ":41: item 41 of the list: not a whole JSON object (Extra data at character 42); mend the file",
    ),
    "json: two commas": (
        json_list([ROWS[0], b"", ROWS[1]]),
        ":2: a comma too many at item 2 of the list; mend the file",
    ),
    "json: a comma behind the last item": (
        json_list([*ROWS, b""]),
        ":41: a comma too many at item 41 of the list; mend the file",
    ),
    # Found by this test: what follows was taken for a part of item 4, up to the next quote that a text has in it.
    "json: a quote too few": (
        json_list([*ROWS[:3], START + b'"b}', *ROWS[3:]]),
        ":4: item 4 of the list: not a whole JSON object (Invalid control character at character 41); mend the file",
    ),
    "json: a brace too few": (
        json_list([*ROWS[:3], START + b'"b"', *ROWS[3:]]),
        ":4: item 4 of the list is cut off; mend its quotes and brackets",
    ),
    "json: a brace too many": (
        json_list([*ROWS[:3], START + b'"b"}}', *ROWS[3:]]),
        ":4: a brace too many behind item 4 of the list; mend the file",
    ),
    "json: a bracket too many": (
        json_list([*ROWS[:3], START + b'"b"}]', *ROWS[3:]]),
        ": more stands behind the list, which has 4 items; mend the file",
    ),
    "json: two lists": (json_list(ROWS) * 2, ": more stands behind the list, which has 40 items; mend the file"),
    "json: garbage behind the list": (json_list(ROWS) + b"\0", ": more stands behind the list, which has 40"),
    "json: an item of 17 MiB": (
        lambda: json_list([ROWS[0], START + b'"' + b"x" * (17 << 20) + b'"}']),
        ":2: item 2 of the list is longer than 16 MiB; mend its quotes and brackets",
    ),
    "json: a hundred thousand brackets": (b"[" * 100_000, ":1: item 1 of the list is cut off; mend"),
    "json: one object over many lines": (
        json.dumps({"data": ROWS}, indent=1).encode(),
        ": one JSON object, and a list of objects is wanted, or one object a line; convert the file",
    ),
    "json: one object on a line": (
        as_json({"data": ROWS}),
        ":1: field 'instruction' is missing (the row has 'data'); ",
    ),
    "json: a number for a list": (b"42", ":1: a JSON object is wanted, not a number; "),
    "csv: other columns": (
        b"prompt,completion\nHow?,So.\n",
        ": no column 'instruction' in it, it has 'prompt', 'completion'; mend prepare.columns.instruction or the file",
    ),
    "csv: semicolons for commas": (
        csv_text(ROWS, delimiter=";"),
        ": no column 'instruction' in it, it has 'instruction;context;response;category'; mend prepare.columns",
    ),
    "csv: tabs for commas": (
        csv_text(ROWS, delimiter="\t"),
        ": no column 'instruction' in it, it has 'instruction\\tcontext\\tresponse\\tcategory'; mend prepare.columns",
    ),
    "csv: a blank in a column's name": (
        b"instruction, response\nHow?,So.\n",
        ": no column 'response' in it, it has 'instruction', ' response'; mend prepare.columns.response or the file",
    ),
    "csv: invalid UTF-8 in the header": (
        b"instruction,r\xe9ponse\nHow?,So.\n",
        ": no column 'response' in it, it has 'instruction', 'r\\udce9ponse'; mend",
    ),
    "csv: no header": (b"How?,So.\nWhy?,So.\n", ": no column 'instruction' in it, it has 'How?', 'So.'; mend"),
    "csv: a column twice": (
        b"instruction,response,response\nHow?,So.,So.\n",
        ": the column 'response' stands there twice; rename one",
    ),
    "csv: a quote that is not closed": (
        csv_text(ROWS[:2]) + b'How?,,"So.,a\nWhy?,,So.,b\n',
        ":7: not CSV (unexpected end of data); mend the quotes of the row that begins there",
    ),
    "csv: a quote in the middle": (
        csv_text(ROWS[:2]) + b'How?,,"So" it is.,a\n',
        ":7: not CSV (',' expected after '\"'); mend the quotes of the row that begins there",
    ),
    "csv: quotes that are escaped": (
        csv_text(ROWS[:2]) + b'How?,,"So \\"it\\" is.",a\n',
        ":7: not CSV (',' expected after '\"'); mend the quotes of the row that begins there",
    ),
    "csv: a header with a quote that is not closed": (
        b'"instruction,response\nHow?,So.\n',
        ":1: not CSV (unexpected end of data); mend the quotes",
    ),
    "csv: a quote that is not closed for 18 MB": (
        lambda: csv_text(ROWS[:2]) + b'How?,,"' + b"and so on\n" * 1_800_000,
        ":7: not CSV (a row longer than 16 MiB, as where a quote is not closed); mend the quotes of the row",
    ),
    "csv: a line of 17 MiB": (
        lambda: csv_text([]) + b"x" * (17 << 20),
        ":2: not CSV (a row longer than 16 MiB, as where a quote is not closed); mend the quotes of the row",
    ),
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
    name: str, bad_rows: str, workplace: Path, prepare: Prepared
) -> None:
    content, said = BAD_FILES[name]
    file = file_name(name)
    write_params(workplace, bad_rows)
    (workplace / RAW / "good.jsonl").write_bytes(jsonl(ROWS))
    (workplace / RAW / file).write_bytes(content() if callable(content) else content)
    before = everything(workplace)
    status, error = prepare(workplace)
    assert (status, error.count("\n")) == (1, 1)
    assert error.startswith(f"error: {RAW}/{file}{said}")
    assert everything(workplace) == before


def test_shards_of_which_one_has_other_columns_stop_the_run_even_if_bad_rows_are_rejected(
    workplace: Path, prepare: Prepared
) -> None:
    write_params(workplace, "reject")
    (workplace / RAW / "0.jsonl").write_bytes(jsonl(ROWS))
    (workplace / RAW / "1.jsonl").write_bytes(jsonl(OTHER))
    status, error = prepare(workplace)
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
    (folder / RAW / "some.parquet").write_bytes(GOOD_PARQUET[:3000])


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
    damage: Callable[[Path], None], said: str, workplace: Path
) -> None:
    damage(workplace)
    before = everything(workplace)
    done = run_stage(workplace, "stages.prepare")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {said}")
    assert everything(workplace) == before


# Root may read every file: what is run as root becomes another user, once everything is imported.
AS_NOBODY = """
import os, howto.params.file, stages.prepare
howto.params.file.read_params()
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
stages.prepare.main()
"""


def test_a_file_without_permission_stops_the_run() -> None:
    with tempfile.TemporaryDirectory(prefix="readers-") as name:  # pytest's own are closed to other users
        folder = Path(name)
        (folder / RAW).mkdir(parents=True)
        write_params(folder, "reject")
        path = folder / RAW / "some.jsonl"
        path.write_bytes(jsonl(ROWS))
        path.chmod(0)
        if os.geteuid() == 0:
            for made in (folder, *folder.rglob("*")):
                os.chown(made, 65534, 65534)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY],
            check=False,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"error: {RAW}/some.jsonl: no permission; change the owner or the mode of the file\n"
        assert sorted(made.name for made in (folder / "data").iterdir()) == ["raw"]


# --- Odd, and right ---------------------------------------------------------------------------------------

BOM = b"\xef\xbb\xbf"
EXTRA = [{"id": 7, "tags": [["a"], []], **row, "score": 0.5, "url": None} for row in ROWS]
WITHOUT = [{"instruction": row["instruction"], "response": row["response"]} for row in ROWS]
NULLS = [{**row, "context": None, "category": None} for row in WITHOUT]


def text_columns(kind: pyarrow.DataType) -> pyarrow.Table:
    return pyarrow.table({name: pyarrow.array([row[name] for row in ROWS]).cast(kind) for name in NAMES})


ODD: dict[str, tuple[Content, list[Raw]]] = {
    "jsonl: plain": (jsonl(ROWS), ROWS),
    "jsonl: with a byte order mark": (BOM + jsonl(ROWS), ROWS),
    "jsonl: with CRLF": (jsonl(ROWS).replace(b"\n", b"\r\n"), ROWS),
    "jsonl: without a last line end": (jsonl(ROWS)[:-1], ROWS),
    "jsonl: with blank lines": (b"\n \n" + jsonl(ROWS).replace(b"\n", b"\n\n\t\r\n"), ROWS),
    "jsonl: with escapes": (b"\n".join(json.dumps(row).encode() for row in ROWS), ROWS),
    "jsonl: with blanks around tokens": (jsonl(ROWS).replace(b'": "', b'"\t: \r "'), ROWS),
    "jsonl: with other columns too": (jsonl(EXTRA), ROWS),
    "jsonl: without context and category": (jsonl(WITHOUT), WITHOUT),
    "jsonl: with null for context and category": (jsonl(NULLS), WITHOUT),
    "JSONL: the name in capitals": (jsonl(ROWS), ROWS),
    "json: JSONL under this name": (BOM + b"\n" + jsonl(ROWS), ROWS),
    "json: one row of JSONL under this name": (jsonl(ROWS[:1])[:-1], ROWS[:1]),
    "json: plain": (json_list(ROWS), ROWS),
    "json: with a byte order mark": (BOM + json_list(ROWS), ROWS),
    "json: on one line": (json.dumps(ROWS, separators=(",", ":")).encode(), ROWS),
    "json: that is indented": (json.dumps(ROWS, indent=4).encode().replace(b"\n", b"\r\n"), ROWS),
    "json: with other columns too": (json.dumps(EXTRA, indent=1).encode(), ROWS),
    "json: behind two megabytes of blanks": (b" \n" * (1 << 20) + json_list(ROWS) + b"\n" * 100, ROWS),
    "csv: plain": (csv_text(ROWS), ROWS),
    "csv: with a byte order mark": (BOM + csv_text(ROWS), ROWS),
    "csv: with LF": (csv_text(ROWS, lineterminator="\n"), ROWS),
    "csv: with CR": (csv_text(ROWS, lineterminator="\r"), ROWS),
    "csv: without a last line end": (csv_text(ROWS)[:-2], ROWS),
    "csv: with blank lines": (b"\n" + csv_text(ROWS, lineterminator="\n\n  \n"), ROWS),
    "csv: with quotes around everything": (BOM + csv_text(ROWS, quoting=csv.QUOTE_ALL), ROWS),
    "csv: with unnamed columns": (csv_text(WITHOUT, lineterminator=",,\n"), WITHOUT),
    "CSV: the name in capitals": (csv_text(ROWS), ROWS),
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
    path = tmp_path / file_name(name)
    path.write_bytes(content() if callable(content) else content)
    found = read(path)
    assert texts(found) == [dict.fromkeys(NAMES, "") | row for row in rows]


def test_the_stage_keeps_every_row_of_files_in_all_formats(workplace: Path, prepare: Prepared) -> None:
    for number, (suffix, write) in enumerate(WRITERS.items()):
        (workplace / RAW / f"some{suffix}").write_bytes(write(ROWS[number * 10 : number * 10 + 10]))
    assert prepare(workplace) == (0, "")
    assert metrics(workplace)["rows"] == {"raw": GOOD, "kept": GOOD, "rejected": 0}


def test_a_null_for_an_instruction_or_a_response_is_an_empty_one(workplace: Path, prepare: Prepared) -> None:
    bare = [{"instruction": None, "response": "So."}, {"instruction": "How?", "response": None}]
    (workplace / RAW / "some.jsonl").write_bytes(jsonl([*ROWS, *bare]))
    assert prepare(workplace) == (0, "")
    rejected = metrics(workplace)["rejected"]
    assert (rejected["bad_row"], rejected["empty_instruction"], rejected["empty_response"]) == (0, 1, 1)


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
        with contextlib.suppress(Stop):
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
SIZES = st.sampled_from([1, 2, 3, 7, 64, readers.CHUNK_BYTES])
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
    except Stop as stop:
        message = str(stop)
        assert message.startswith(f"{path}:") and "; " in message
        assert len(message.splitlines()) == 1 and len(message) < len(str(path)) + 700
        return message
    for row in rows:
        if isinstance(row, BadRow):
            assert row.problem and len(row.problem.splitlines()) == 1 and len(row.problem) < 700
            assert len(row.text) <= 10 * readers.SHOWN
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
