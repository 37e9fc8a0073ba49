"""A bad row is told by its line and its problem, in every format, and costs no row beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.raw_files import (
    GOOD,
    RAW,
    ROWS,
    START,
    WRITERS,
    Raw,
    csv_text,
    everything,
    file_name,
    jsonl,
    make_workplace,
    metrics,
    prepare,
    written,
)

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
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_workplace(tmp_path, "stop")
    where, problem = with_bad_row(tmp_path, name)
    before = everything(tmp_path)
    status, error = prepare(tmp_path, capsys)
    assert (status, error.count("\n")) == (1, 1)
    assert error.startswith(f"error: {where}: {problem}")
    assert error.endswith("; mend or remove it, or say `bad_rows: reject` in params.yaml\n")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_rejected_and_counted_and_the_rows_around_it_are_kept(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_workplace(tmp_path, "reject")
    where, problem = with_bad_row(tmp_path, name)
    assert prepare(tmp_path, capsys) == (0, "")
    counts = metrics(tmp_path)
    assert counts["rows"] == {"raw": GOOD + 1, "kept": GOOD, "rejected": 1}
    assert counts["rejected"]["bad_row"] == 1
    (rejected,) = written(tmp_path, "rejected")
    assert (rejected["source"], rejected["reason"]) == (where, "bad_row")
    assert rejected["detail"].startswith(problem)
    bad = BAD_ROWS[name][0]
    assert bool(rejected["text"]) == bool(bad)
    kept = {row["input"] for split in ("train", "validation", "test") for row in written(tmp_path, split)}
    assert len(kept) == GOOD


def test_a_null_for_an_instruction_or_a_response_is_an_empty_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_workplace(tmp_path, "stop")
    bare = [{"instruction": None, "response": "So."}, {"instruction": "How?", "response": None}]
    (tmp_path / RAW / "some.jsonl").write_bytes(jsonl([*ROWS, *bare]))
    assert prepare(tmp_path, capsys) == (0, "")
    rejected = metrics(tmp_path)["rejected"]
    assert (rejected["bad_row"], rejected["empty_instruction"], rejected["empty_response"]) == (0, 1, 1)
