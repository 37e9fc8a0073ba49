"""CSV: what is damaged ends in one line that says where, what is odd but right is read."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.support.raw_files import (
    BOM,
    NAMES,
    RAW,
    ROWS,
    WITHOUT,
    Content,
    Raw,
    csv_text,
    file_name,
    prepare_beside_a_good_file,
    read,
    texts,
    write_case,
)

# What a file holds, and what is said of it, be bad rows rejected or not. A good file stands beside it.
BAD_FILES: dict[str, tuple[Content, str]] = {
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


ODD: dict[str, tuple[Content, list[Raw]]] = {
    "csv: plain": (csv_text(ROWS), ROWS),
    "csv: with a byte order mark": (BOM + csv_text(ROWS), ROWS),
    "csv: with LF": (csv_text(ROWS, lineterminator="\n"), ROWS),
    "csv: with CR": (csv_text(ROWS, lineterminator="\r"), ROWS),
    "csv: without a last line end": (csv_text(ROWS)[:-2], ROWS),
    "csv: with blank lines": (b"\n" + csv_text(ROWS, lineterminator="\n\n  \n"), ROWS),
    "csv: with quotes around everything": (BOM + csv_text(ROWS, quoting=csv.QUOTE_ALL), ROWS),
    "csv: with unnamed columns": (csv_text(WITHOUT, lineterminator=",,\n"), WITHOUT),
    "CSV: the name in capitals": (csv_text(ROWS), ROWS),
}


@pytest.mark.parametrize("name", ODD)
def test_a_file_that_looks_odd_and_is_right_gives_its_rows(name: str, tmp_path: Path) -> None:
    content, rows = ODD[name]
    found = read(write_case(tmp_path, name, content))
    assert texts(found) == [dict.fromkeys(NAMES, "") | row for row in rows]
