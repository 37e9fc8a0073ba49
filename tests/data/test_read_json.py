"""JSONL and lists of JSON: what is damaged ends in one line that says where, what is odd but right is read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.support.raw_files import (
    BOM,
    EXTRA,
    NAMES,
    NULLS,
    OTHER,
    RAW,
    ROWS,
    START,
    WITHOUT,
    Content,
    Raw,
    as_json,
    file_name,
    json_list,
    jsonl,
    prepare_beside_a_good_file,
    read,
    texts,
    write_case,
)

# What a file holds, and what is said of it, be bad rows rejected or not. A good file stands beside it.
BAD_FILES: dict[str, tuple[Content, str]] = {
    "jsonl: gzip under a wrong name": (gzip.compress(jsonl(ROWS), mtime=0), ":1: byte 2 is not"),
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
}


@pytest.mark.parametrize("name", ODD)
def test_a_file_that_looks_odd_and_is_right_gives_its_rows(name: str, tmp_path: Path) -> None:
    content, rows = ODD[name]
    found = read(write_case(tmp_path, name, content))
    assert texts(found) == [dict.fromkeys(NAMES, "") | row for row in rows]
