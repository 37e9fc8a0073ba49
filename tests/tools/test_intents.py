"""A file of intents: each line that can be read is, and an error names file and line of every other one."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from howto.core.errors import UserError
from howto.tools.intents import Intent, read_intents

BOM = b"\xef\xbb\xbf"


def read(folder: Path, suffix: str, content: bytes) -> tuple[list[tuple[int, str, str]], list[str]]:
    path = folder / f"intents{suffix}"
    path.write_bytes(content)
    intents, errors = read_intents(str(path))
    return [(line, one.intent, one.context) for line, one in intents.items()], [
        error.removeprefix(f"{folder}/intents") for error in errors
    ]


@pytest.mark.parametrize("lead", [b"", BOM], ids=["", "BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(
    ("suffix", "lines", "first"),
    [
        (".txt", ["How do I repot a fern?", "", "  Étendre du linge "], 1),
        (".jsonl", ['{"intent": "How do I repot a fern?"}', "", '{"input": "Étendre du linge", "context": null}'], 1),
        (".CSV", ["context,instruction", ",How do I repot a fern?", ",", '"","Étendre du linge"'], 2),
    ],
)
def test_each_kind_of_file_gives_the_intents_with_their_lines(
    tmp_path: Path, suffix: str, lines: list[str], first: int, end: bytes, lead: bytes
) -> None:
    content = lead + end.join(line.encode() for line in lines)
    expected = [(first, "How do I repot a fern?", ""), (first + 2, "Étendre du linge", "")]
    assert read(tmp_path, suffix, content) == read(tmp_path, suffix, content + end) == (expected, [])


def test_an_intent_may_have_a_context_and_the_first_field_that_is_present_has_the_intent(tmp_path: Path) -> None:
    line = b'{"context": "of two\\nlines ", "input": "two", "intent": "one"}'
    assert read(tmp_path, ".jsonl", line) == ([(1, "one", "of two\nlines")], [])


@pytest.mark.parametrize(
    ("suffix", "line"),
    [
        (".txt", b"How \xff?"),
        (".jsonl", b"How?"),
        (".jsonl", b'{"question": "How?"}'),
        (".jsonl", b'{"intent": " \\n"}'),
        (".jsonl", b'{"intent": "How?", "context": false}'),
        (".csv", b"\xe9t\xe9,"),
        (".csv", b"one, two, three"),
        (".csv", b",a context"),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path, suffix: str, line: bytes) -> None:
    good = {".txt": [b"one", b"two"], ".jsonl": [b'{"input": "one"}', b'{"input": "two"}'], ".csv": [b"one,", b"two,"]}
    header = [b"intent,context"] if suffix == ".csv" else []
    intents, (error,) = read(tmp_path, suffix, b"\n".join([*header, good[suffix][0], line, good[suffix][1]]))
    assert [text for _, text, _ in intents] == ["one", "two"]
    assert error.startswith(f"{suffix}:{len(header) + 2}: ") and "\n" not in error


def test_a_csv_row_is_named_by_the_line_on_which_it_begins(tmp_path: Path) -> None:
    rows = b'intent,context\none,"a, b"\n"two\nlines",\n"not\none"\nthree,c\n'
    intents, (error,) = read(tmp_path, ".csv", rows)
    assert intents == [(2, "one", "a, b"), (3, "two\nlines", ""), (7, "three", "c")]
    assert error.startswith(".csv:5: ")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "missing.txt: No such file"),
        ("utf16.txt", "How?".encode("utf-16-le"), "utf16.txt: expected UTF-8"),
        ("empty.csv", b"", "empty.csv: expected a column intent"),
        ("quotes.csv", b'intent\n"a "quoted" word"\n', "quotes.csv:2: "),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_with_its_name(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_intents(str(tmp_path / name))
    assert message in str(error.value) and "\n" not in str(error.value)


PIECES = [b"intent", b"context", b",", b'"', b"\n", b"\r", b"\xff", "é".encode(), BOM, b'{"intent": ', b'"a"', b"7}"]
CONTENTS = st.binary() | st.lists(st.sampled_from(PIECES)).map(lambda pieces: b"intent,context\n" + b"".join(pieces))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENTS, suffix=st.sampled_from([".txt", ".jsonl", ".csv"]))
@example(content=b"intent\r\rone\r", suffix=".csv")
@example(content=b'{"intent": "\\udc80"}', suffix=".jsonl")
@example(content=BOM, suffix=".txt")
def test_whatever_the_bytes_there_are_valid_intents_and_errors_with_the_file_and_the_line(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"intents{suffix}"
    path.write_bytes(content)
    try:
        intents, errors = read_intents(str(path))
    except UserError as error:
        errors, intents = [str(error)], {}
    assert all(error.startswith(f"{path}:") and "\n" not in error for error in errors)
    assert intents == {line: Intent.parse(one.model_dump()) for line, one in intents.items()}
    for intent in intents.values():
        (intent.intent + intent.context).encode()
