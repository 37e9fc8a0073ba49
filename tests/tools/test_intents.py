"""A file of intents: each row that can be read is, and an error names file and row of every other one."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from howto.core.errors import UserError
from howto.core.schema import Message
from howto.data.config import Columns
from howto.tools.intents import Intent, read_intents
from tests.support.raw_files import COMPRESS, jsonl, table_file

BOM = b"\xef\xbb\xbf"
COLUMNS = Columns(instruction="instruction", context="context", response="response", category="category")
FERN, LINE = "How do I repot a fern?", "Étendre du linge"


def read(
    folder: Path, suffix: str, content: bytes, columns: Columns = COLUMNS
) -> tuple[list[tuple[int, str, str]], list[str]]:
    path = folder / f"intents{suffix}"
    path.write_bytes(content)
    intents, errors = read_intents(str(path), columns)
    return [(line, one.intent, one.context) for line, one in intents.items()], [
        error.removeprefix(f"{folder}/intents") for error in errors
    ]


@pytest.mark.parametrize("lead", [b"", BOM], ids=["", "BOM"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize(
    ("suffix", "lines", "numbers"),
    [
        (".txt", [FERN, "", f"  {LINE} "], (1, 3)),
        (".jsonl", [json.dumps({"intent": FERN}), "", json.dumps({"input": LINE, "context": None})], (1, 3)),
        (".CSV", ["context,instruction", f",{FERN}", "", f'"","{LINE}"'], (1, 2)),
        (".tsv", ["context\tprompt", f"\t{FERN}", "", f"\t{LINE}"], (1, 2)),
    ],
)
def test_each_kind_of_file_gives_the_intents_with_their_lines_or_places(
    tmp_path: Path, suffix: str, lines: list[str], numbers: tuple[int, int], end: bytes, lead: bytes
) -> None:
    content = lead + end.join(line.encode() for line in lines)
    expected = list(zip(numbers, (FERN, LINE), ("", ""), strict=True))
    assert read(tmp_path, suffix, content) == read(tmp_path, suffix, content + end) == (expected, [])


USER, ANSWER = {"role": "user", "content": FERN}, {"role": "assistant", "content": "Which pot?"}
BLUE = {"role": "user", "content": "A blue one."}
SHAREGPT = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": FERN}]
SHAREGPT += [{"from": "gpt", "value": "Which pot?"}, {"from": "human", "value": "A blue one."}]
EARLIER = (Message(role="user", content=FERN), Message(role="assistant", content="Which pot?"))
PREPARED = {
    "id": "0",
    "category": "none",
    "instruction": "Be brief.",
    "input": f"{FERN}\n\nA text.",
    "context": "A text.",
}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"context": "of two\nlines ", "input": "two", "intent": "one"}, {"intent": "one", "context": "of two\nlines"}),
        ({"instruction": FERN, "input": "A text.", "output": "1. So."}, {"intent": FERN, "context": "A text."}),
        ({"question": FERN, "answer": "1. So."}, {"intent": FERN}),
        ({"messages": [USER]}, {"intent": FERN}),
        ({"messages": [USER, ANSWER]}, {"intent": FERN}),
        ({"prompt": [USER, ANSWER, BLUE]}, {"intent": "A blue one.", "history": EARLIER}),
        ({"conversations": SHAREGPT}, {"intent": "A blue one.", "history": EARLIER, "system": "Be brief."}),
        ({**PREPARED, "output": "1. So."}, {"intent": FERN, "context": "A text.", "system": "Be brief."}),
        ({"frage": FERN, "instruction": "Answer."}, {"intent": FERN}),
        (FERN, {"intent": FERN}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_list", [False, True], ids=["JSON lines", "a JSON list"])
def test_a_row_has_its_intent_under_one_of_the_usual_names_or_at_the_end_of_a_conversation(
    tmp_path: Path, row: Any, expected: dict[str, Any], is_list: bool
) -> None:
    columns = COLUMNS.model_copy(update={"instruction": "frage"})
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row], indent=1) if is_list else json.dumps(row), encoding="utf-8")
    assert read_intents(str(path), columns) == ({1: Intent(**expected)}, [])


def test_the_formats_of_rows_are_read_compressed_and_as_tables(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": text}]} for text in (FERN, LINE)]
    files = {f".jsonl{ending}": compress(jsonl(rows)) for ending, compress in COMPRESS.items()}
    files |= {".ndjson": jsonl(rows), ".parquet": table_file(pyarrow.Table.from_pylist(rows))}
    files[".csv.zst"] = COMPRESS[".zst"](f"id,prompt\n1,{FERN}\n2,{LINE}\n".encode())
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    files[".arrow"] = (tmp_path / "saved/data-00000-of-00001.arrow").read_bytes()
    for suffix, content in files.items():
        assert read(tmp_path, suffix, content) == ([(1, FERN, ""), (2, LINE, "")], []), suffix


@pytest.mark.parametrize("name", ["intents.txt", "intents", "-"])
def test_json_in_a_text_file_or_on_standard_input_is_read_as_rows_and_never_as_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def intents(text: str) -> tuple[list[str], list[str]]:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        found, errors = read_intents("-" if name == "-" else str(path), COLUMNS)
        return [intent.intent for intent in found.values()], errors

    rows = [{"intent": FERN}, {"intent": LINE}]
    for text in (json.dumps(rows), json.dumps(rows, indent=2), "\n".join(map(json.dumps, rows))):
        assert intents(text) == ([FERN, LINE], [])
    assert intents(json.dumps([FERN, LINE])) == ([FERN, LINE], [])
    assert intents("[Kitchen] How do I boil rice?\n{x} is what?") == (
        ["[Kitchen] How do I boil rice?", "{x} is what?"],
        [],
    )
    for text in (json.dumps(rows)[:-9], "[\n", json.dumps(rows) + "x"):
        with pytest.raises(UserError, match="it begins like JSON"):
            intents(text)
    assert [len(part) for part in intents('{\n "intent": "How?"\n}')] == [0, 3]  # each line is named


@pytest.mark.parametrize(
    ("suffix", "line"),
    [
        (".txt", b"How \xff?"),
        (".jsonl", b"How?"),
        (".jsonl", b'{"title": "How?"}'),
        (".jsonl", b'{"intent": " \\n"}'),
        (".jsonl", b'{"intent": "How?", "context": false}'),
        (".jsonl", b'{"intent": "How?", "Context": "A text."}'),
        (".jsonl", b'{"messages": [{"role": "assistant", "content": "So."}]}'),
        (".jsonl", b'{"messages": []}'),
        (".jsonl", b'{"instruction": "How?", "input": "A text.", "context": "Another."}'),
        (".csv", b",a context"),
        (".csv", b'" ",a context'),
    ],
)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path, suffix: str, line: bytes) -> None:
    good = {".txt": [b"one", b"two"], ".jsonl": [b'{"input": "one"}', b'{"input": "two"}'], ".csv": [b"one,", b"two,"]}
    header = [b"intent,context"] if suffix == ".csv" else []
    intents, (error,) = read(tmp_path, suffix, b"\n".join([*header, good[suffix][0], line, good[suffix][1]]))
    assert [text for _, text, _ in intents] == ["one", "two"]
    assert error.startswith(f"{suffix}:2: ") and "\n" not in error


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "missing.txt: No such file"),
        ("missing.csv", None, "missing.csv: No such file"),
        ("utf16.txt", "How?".encode("utf-16-le"), "utf16.txt: expected UTF-8"),
        ("empty.csv", b"", "empty.csv: expected one of the columns intent"),
        ("other.csv", b"title\nHow?\n", "(there are 'title')"),
        ("quotes.csv", b'intent\n"a "quoted" word"\n', "quotes.csv: damaged"),
        ("latin.csv", b"intent\ncaf\xe9\n", "latin.csv: damaged"),
        ("rows.parquet", b"PAR1", "rows.parquet: damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_with_its_name(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read_intents(str(tmp_path / name), COLUMNS)
    assert message in str(error.value) and "\n" not in str(error.value)


PIECES = [
    b"intent",
    b"context",
    b",",
    b'"',
    b"\n",
    b"\r",
    b"\xff",
    "é".encode(),
    BOM,
    b'{"intent": ',
    b'"a"',
    b"7}",
    b"[{",
]
CONTENTS = st.binary() | st.lists(st.sampled_from(PIECES)).map(b"".join)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=CONTENTS, suffix=st.sampled_from([".txt", ".jsonl"]))
@example(content=b'{"intent": "\\udc80"}', suffix=".jsonl")
@example(content=b'"\\udc80"', suffix=".jsonl")
@example(content=BOM, suffix=".txt")
def test_whatever_the_bytes_there_are_valid_intents_and_errors_with_the_file_and_the_line(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    path = tmp_path / f"intents{suffix}"
    path.write_bytes(content)
    try:
        intents, errors = read_intents(str(path), COLUMNS)
    except UserError as error:
        errors, intents = [str(error)], {}
    assert all(error.startswith(f"{path}:") and "\n" not in error for error in errors)
    assert intents == {line: Intent.parse(**dict(one)) for line, one in intents.items()}
    for intent in intents.values():
        (intent.intent + intent.context).encode()
