"""A file of intents: each line that can be read is, and what is wrong with another is said by file and line."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from howto.core.errors import UserError
from howto.tools.intents import Intent, read_intents

BOM = b"\xef\xbb\xbf"
TWO = [(1, "How do I repot a fern?", ""), (3, "Étendre du linge", "")]


def read(folder: Path, ending: str, content: bytes) -> tuple[list[tuple[int, str, str]], list[str]]:
    """What is read of a file, and what is said of its other lines, without the folder."""
    path = folder / f"intents{ending}"
    path.write_bytes(content)
    intents, bad = read_intents(str(path), io.BytesIO())
    return [(line, intent, context) for line, intent, context in intents], [
        problem.removeprefix(f"{folder}/intents") for problem in bad
    ]


@pytest.mark.parametrize("lead", [b"", BOM], ids=["", "BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(
    ("ending", "lines", "lines_before"),
    [
        (".txt", ["How do I repot a fern?", "", "  Étendre du linge "], 0),
        (".jsonl", ['{"intent": "How do I repot a fern?"}', "", '{"input": "Étendre du linge", "context": null}'], 0),
        (".JSONL", ['{"instruction": "How do I repot a fern?"}', "", '{"intent": " Étendre du linge"}'], 0),
        (".csv", ["context,instruction", ",How do I repot a fern?", ",", '"","Étendre du linge"'], 1),
        (".CSV", ["intent", "How do I repot a fern?", "", "Étendre du linge"], 1),
    ],
)
def test_each_form_gives_the_intents_with_their_lines(
    tmp_path: Path, ending: str, lines: list[str], lines_before: int, end: bytes, lead: bytes
) -> None:
    content = lead + end.join(line.encode() for line in lines)
    wanted = [(line + lines_before, *more) for line, *more in TWO]
    assert read(tmp_path, ending, content) == read(tmp_path, ending, content + end) == (wanted, [])


def test_standard_input_is_text_with_an_intent_a_line() -> None:
    intents, bad = read_intents("-", io.BytesIO(b'one\n\n{"intent": "two"}\n\xff\n'))
    assert intents == [Intent(1, "one", ""), Intent(3, '{"intent": "two"}', "")]
    assert bad == ["-:4: not UTF-8"]


def test_an_object_or_a_row_may_have_a_context_and_the_first_name_that_has_a_text_is_read(tmp_path: Path) -> None:
    wanted = [(1, "one", "of two\nlines")]
    assert read(tmp_path, ".jsonl", b'{"context": "of two\\nlines ", "input": "two", "intent": "one"}')[0] == wanted
    wanted = [(2, "one", "of two\nlines"), (4, "three, four", "")]
    assert read(tmp_path, ".csv", b'intent,context\none,"of two\nlines"\n"three, four",\n') == (wanted, [])


DEEP = b'{"intent": "x", "more": ' + b"[" * 100_000
NO_TEXT = "no text under intent, instruction or input"
BAD_LINES: dict[str, tuple[str, bytes, str]] = {
    "not UTF-8": (".txt", b"How \xff?", "not UTF-8"),
    "a NUL": (".txt", b"a\0b", "a NUL character in it; save it as UTF-8"),
    "not JSON": (".jsonl", b"How?", "not a JSON object"),
    "half an object": (".jsonl", b'{"intent": "How?"', "not a JSON object"),
    "a list": (".jsonl", b'["How?"]', "not a JSON object"),
    "a number": (".jsonl", b"17", "not a JSON object"),
    "a number of many digits": (".jsonl", b"1" * 5000, "not a JSON object"),
    "a field of many digits": (".jsonl", b'{"intent": "How?", "n": ' + b"1" * 5000 + b"}", "not a JSON object"),
    "deep nesting": (".jsonl", DEEP, "not a JSON object"),
    "no field": (".jsonl", b'{"question": "How?"}', NO_TEXT),
    "an intent that is a number": (".jsonl", b'{"intent": 17}', NO_TEXT),
    "an intent that is null": (".jsonl", b'{"intent": null}', NO_TEXT),
    "an empty intent": (".jsonl", b'{"intent": " \\n"}', NO_TEXT),
    "a context that is a list": (".jsonl", b'{"intent": "How?", "context": ["a"]}', "context is not a text"),
    "a context that is false": (".jsonl", b'{"intent": "How?", "context": false}', "context is not a text"),
    "a text that is not UTF-8": (".jsonl", b'{"intent": "\xff"}', "not UTF-8"),
    "bytes that are neither": (".jsonl", b"\xff", "not UTF-8"),
    "half a character": (".jsonl", b'{"intent": "\\ud83d"}', "half of a character, a lone surrogate, in it"),
    "half a context": (
        ".jsonl",
        b'{"intent": "How?", "context": "\\ud83d"}',
        "half of a character, a lone surrogate, in it",
    ),
    "a NUL in JSON": (".jsonl", b'{"intent": "a\\u0000b"}', "a NUL character in it; save it as UTF-8"),
    "a row that is not UTF-8": (".csv", b"\xe9t\xe9,", "not UTF-8"),
    "a row with a NUL": (".csv", b"a\0b,", "a NUL character in it; save it as UTF-8"),
    "a row too long": (".csv", b"one, two, three", "3 values, and the header names 2 columns"),
    "a row too short": (".csv", b"one", "1 values, and the header names 2 columns"),
    "a row without an intent": (".csv", b",a context", NO_TEXT),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_bad_line_is_named_with_its_reason_and_the_others_are_read(tmp_path: Path, name: str) -> None:
    ending, line, reason = BAD_LINES[name]
    good = {".txt": [b"one", b"two"], ".jsonl": [b'{"input": "one"}', b'{"input": "two"}'], ".csv": [b"one,", b"two,"]}
    first, last = good[ending]
    header = [b"intent,context"] if ending == ".csv" else []
    intents, bad = read(tmp_path, ending, b"\n".join([*header, first, line, last]))
    assert [text for _, text, _ in intents] == ["one", "two"]
    assert bad == [f"{ending}:{len(header) + 2}: {reason}"]


def test_a_csv_row_is_named_by_the_line_on_which_it_begins(tmp_path: Path) -> None:
    assert read(tmp_path, ".csv", b'intent\none\n"two\nlines"\n"not\none",x\nthree\n') == (
        [(2, "one", ""), (3, "two\nlines", ""), (7, "three", "")],
        [".csv:5: 2 values, and the header names 1 columns"],
    )


@pytest.mark.parametrize("wrong", [b'"not closed\nthree\n', b'"a "quoted" word"\nthree\n'])
def test_where_quotes_are_wrong_the_rows_before_are_read_and_it_says_that_the_others_are_not(
    tmp_path: Path, wrong: bytes
) -> None:
    intents, (problem,) = read(tmp_path, ".csv", b"intent\none\ntwo\n" + wrong)
    assert intents == [(2, "one", ""), (3, "two", "")]
    assert problem.startswith(".csv:4: not CSV (") and "nothing was read from there on" in problem


def test_a_long_field_is_no_mistake(tmp_path: Path) -> None:
    context = "word " * 100_000
    (row,), bad = read(tmp_path, ".csv", f"intent,context\nHow?,{context}\n".encode())
    assert row == (2, "How?", context.strip()) and bad == []


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.txt", None, "missing.txt: no such file; give a file"),
        ("intents.txt/within.txt", None, "within.txt: no such file; give a file"),
        ("x" * 300, None, "cannot be read (File name too long); give a file"),
        (".", None, ": a folder; give a file"),
        ("other.csv", b"question\nHow?\n", "other.csv:1: no column intent, instruction or input; name"),
        ("empty.csv", b"", "empty.csv:1: no column intent, instruction or input; name"),
        ("twice.csv", b"\nintent,intent\nHow?,Why?\n", "twice.csv:2: the column 'intent' stands there twice; rename"),
    ],
)
def test_a_file_that_cannot_be_read_stops_with_its_name(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    (tmp_path / "intents.txt").write_text("one\n", encoding="utf-8")
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as stop:
        read_intents(str(path), io.BytesIO())
    assert said in str(stop.value) and "\n" not in str(stop.value)


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
@pytest.mark.parametrize("content", [b"", b"\n\r\n  \n", BOM])
def test_a_file_of_nothing_has_no_intents_and_no_mistakes(tmp_path: Path, ending: str, content: bytes) -> None:
    assert read(tmp_path, ending, content) == ([], [])


JSON_LINES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.sampled_from(["intent", "context", "x"]), values),
    max_leaves=5,
).map(lambda value: json.dumps(value).encode())
CSV_PIECES = st.sampled_from([b"intent", b"context", b",", b'"', b"\n", b"\r", b"\0", b"\xff", b"a", "é".encode(), BOM])
CONTENTS = st.one_of(
    st.binary(),
    st.lists(JSON_LINES).map(b"\n".join),
    st.lists(CSV_PIECES).map(b"".join),
    st.lists(CSV_PIECES).map(lambda pieces: b"intent,context\n" + b"".join(pieces)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENTS, ending=st.sampled_from([".txt", ".jsonl", ".csv"]))
@example(content=b'intent\n"', ending=".csv")
@example(content=b"intent\r\rone\r", ending=".csv")
@example(content=b'{"intent": "\\udc80"}', ending=".jsonl")
def test_whatever_the_bytes_there_are_intents_that_can_be_written_and_reasons_or_a_stop(
    tmp_path: Path, content: bytes, ending: str
) -> None:
    path = tmp_path / f"intents{ending}"
    path.write_bytes(content)
    try:
        intents, bad = read_intents(str(path), io.BytesIO())
    except UserError as stop:
        assert ending == ".csv" and str(stop).startswith(f"{path}:") and "\n" not in str(stop)
        return
    lines = [intent.line for intent in intents]
    assert lines == sorted(set(lines))  # a line has one intent: answers are known by it
    for intent in intents:
        assert intent.intent == intent.intent.strip() != ""
        (intent.intent + intent.context).encode()
    assert all(problem.startswith(f"{path}:") and "\n" not in problem for problem in bad)
    if ending == ".txt":
        assert len(intents) + len(bad) == sum(
            bool(line.decode("utf-8", "replace").strip()) for line in content.removeprefix(BOM).split(b"\n")
        )
