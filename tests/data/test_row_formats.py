"""Columns are read as params name them, or by the usual names, and none is dropped without a word."""

from pathlib import Path
from typing import Any

import pytest

from howto.core.errors import UserError
from howto.data.config import Columns
from howto.data.formats.row_formats import BadRow, RowFormats
from tests.support.raw_files import ROWS, Prepared, Raw, csv_text, jsonl, parquet, prepare, with_params

COLUMNS = Columns(instruction="instruction", context="context", response="response", category="category")
ALPACA = [
    {"instruction": row["instruction"], "input": row["context"], "output": row["response"], "text": "x"} for row in ROWS
]
TEXTS = sorted((row["instruction"], row["context"], row["response"]) for row in ROWS)


def columns(**changes: str | None) -> dict[str, Any]:
    return {**COLUMNS.model_dump(), **changes}


def texts(made: Prepared) -> list[tuple[str, ...]]:
    return sorted(
        (
            row["input"].removesuffix("\n\n" + row["context"]) if row["context"] else row["input"],
            row["context"],
            row["output"],
        )
        for row in made.kept
    )


def stop_of(folder: Path, files: dict[str, bytes], **changes: Any) -> str:
    with pytest.raises(UserError) as stop:
        prepare(folder, {f"rows/{name}": content for name, content in files.items()}, with_params(**changes))
    assert "\n" not in str(stop.value)
    return str(stop.value)


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (["instruction", "response", "messages", "prompt", "completion"], ["instruction", "response"]),
        (["messages", "conversations", "prompt", "completion"], ["messages"]),
        (["conversations", "prompt", "completion", "category"], ["conversations", "category"]),
        (["prompt", "completion", "question", "answer", "context"], ["prompt", "completion", "context"]),
        (["instruction", "input", "output"], ["instruction", "output", "input"]),
        (["instruction", "output", "context"], ["instruction", "output", "context"]),
        (["system_prompt", "question", "response"], ["question", "response", "system_prompt"]),
    ],
)
def test_the_names_in_params_come_first_and_then_the_usual_ones_in_their_order(
    names: list[str], read: list[str]
) -> None:
    found = RowFormats(COLUMNS).of(tuple(names))
    assert found.read == read and set(found.unread) == set(names) - set(read)


@pytest.mark.parametrize(
    ("names", "phrase"),
    [
        (["frage", "antwort"], "no column 'instruction' (there are 'frage', 'antwort'); prepare.columns"),
        (["prompt", "chosen", "rejected"], "no column 'instruction'"),
        (["instruction", "messages"], "no column 'response'"),  # is the instruction the system message?
        (["instruction", "input", "context", "output"], "no column 'response'"),  # two may be the context
        (["Instruction", "Response"], "no column 'instruction' (there are 'Instruction', 'Response')"),
        (["instruction", "response", "Context"], "column 'Context' is not read, because prepare.columns.context is"),
        (["instruction", "response", "context", " Category"], "' Category' is not read, because prepare.columns.categ"),
        (["instruction", "response", "input"], "column 'input' is not read, because prepare.columns.context is"),
        (["messages", "\ufeffcontext"], "context' is not read, because prepare.columns.context is 'context'"),
    ],
)
def test_columns_that_may_mean_another_thing_than_is_read_make_a_bad_row(names: list[str], phrase: str) -> None:
    with pytest.raises(BadRow) as bad:
        RowFormats(COLUMNS).of(tuple(names))
    assert phrase in str(bad.value)


def test_alpaca_is_recognised_with_its_context_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = prepare(tmp_path, {"rows/a.jsonl": jsonl(ALPACA[:20]), "rows/b.jsonl": jsonl(ALPACA[20:])})
    assert texts(made) == TEXTS
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert lines == [
        "prepare: 40 rows recognised by their columns: 'instruction' and 'output', with the context in 'input'",
        "prepare: columns that are not read: 'text' (a.jsonl)",
    ]


def test_a_named_column_that_no_row_has_stops_the_run_if_another_column_is_not_read(tmp_path: Path) -> None:
    rows = [{"instruction": row["instruction"], "passage": row["context"], "response": row["response"]} for row in ROWS]
    message = stop_of(tmp_path, {"some.jsonl": jsonl(rows)})
    assert message.startswith(
        "params.yaml: prepare.columns.context and prepare.columns.category: no row has a column 'con"
    )
    assert "'instruction', 'response'" in message and "'passage'" in message
    named = with_params(columns=columns(context="passage"))
    assert "prepare.columns.category: no row has" in stop_of(
        tmp_path, {"some.jsonl": jsonl([{**row, "id": 1} for row in rows])}, columns=named.columns.model_dump()
    )
    assert texts(prepare(tmp_path, {"rows/some.jsonl": jsonl(rows)}, named)) == TEXTS


def test_of_a_recognised_format_another_column_may_be_the_context_but_not_beside_a_conversation(tmp_path: Path) -> None:
    rows = [{"prompt": row["instruction"], "completion": row["response"], "id": row["category"]} for row in ROWS]
    message = stop_of(tmp_path, {"some.jsonl": jsonl(rows)})
    assert "prepare.columns.context: no row has a column 'context'" in message and "these are not read: 'id'" in message
    unnamed = with_params(columns=columns(context=None))
    assert len(prepare(tmp_path, {"rows/some.jsonl": jsonl(rows)}, unnamed).kept) == 40
    turns = (("user", "prompt"), ("assistant", "completion"))
    talks = [
        {"messages": [{"role": role, "content": row[name]} for role, name in turns], "id": row["id"]} for row in rows
    ]
    assert len(prepare(tmp_path, {"rows/some.jsonl": jsonl(talks)}).kept) == 40


@pytest.mark.parametrize("name", ["alpaca.jsonl", "header.csv"])
@pytest.mark.parametrize("beside", [{}, {"a_good_file.jsonl": jsonl(ROWS)}], ids=["alone", "beside a good file"])
def test_a_context_under_another_name_is_never_dropped(tmp_path: Path, name: str, beside: dict[str, bytes]) -> None:
    if name == "alpaca.jsonl":  # only `response` is mapped
        beside = {file: content.replace(b'"response"', b'"output"') for file, content in beside.items()}
        message = stop_of(tmp_path, {**beside, name: jsonl(ALPACA)}, columns={"response": "output"})
        assert f"{name}:1: column 'input' is not read, because prepare.columns.context is 'context'" in message
        return
    header = csv_text(ROWS).replace(b"context", b"Context", 1)
    message = stop_of(tmp_path, {**beside, name: header})
    assert f"{name}: column 'Context' is not read, because prepare.columns.context is 'context'" in message


def test_rows_without_the_optional_columns_go_on_if_no_column_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[Raw] = [{"instruction": row["instruction"], "response": row["response"]} for row in ROWS]
    assert len(prepare(tmp_path, {"rows/some.jsonl": jsonl(rows)}).kept) == 40
    assert len(capsys.readouterr().out.splitlines()) == 1
    unnamed = with_params(columns=columns(context=None, category=None))
    assert len(prepare(tmp_path, {"rows/some.jsonl": jsonl([{**row, "id": 1} for row in rows])}, unnamed).kept) == 40
    assert "not read: 'id' (some.jsonl)" in capsys.readouterr().out
    content = b",instruction,response\n" + b"".join(b"%d,How? %d,So %d.\n" % (n, n, n) for n in range(60))
    assert len(prepare(tmp_path, {"rows/some.jsonl": jsonl(rows), "rows/index.csv": content}).kept) > 60
    assert "not read" not in capsys.readouterr().out  # the first column is the index that pandas writes


def test_a_file_in_which_a_column_is_missing_says_which_of_its_columns_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = parquet(ROWS[20:])
    rows = [{**row, "note": row["category"]} for row in ROWS[:20]]
    for row in rows:
        del row["category"]
    made = prepare(tmp_path, {"rows/a.parquet": other, "rows/b.jsonl": jsonl(rows)})
    assert len(made.kept) == 40 and "not read: 'note' (b.jsonl)\n" in capsys.readouterr().out


def test_a_conversation_may_be_in_a_column_that_params_name_and_must_then_be_there(tmp_path: Path) -> None:
    chat = [
        {"chat": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["response"]}]}
        for row in ROWS
    ]
    named = with_params(columns=columns(messages="chat"))
    made = prepare(tmp_path, {"rows/some.jsonl": jsonl(chat)}, named)
    assert sorted(row["output"] for row in made.kept) == sorted(row["response"] for row in ROWS)
    rows = [{"instruction": row["instruction"], "response": row["response"]} for row in ROWS]
    message = stop_of(tmp_path, {"some.jsonl": jsonl(rows)}, columns=columns(messages="chat"))
    assert message.startswith("params.yaml: prepare.columns.messages: no row has a column 'chat'")


def test_rows_that_prepare_wrote_are_recognised_even_if_their_columns_are_not_named(tmp_path: Path) -> None:
    first = prepare(tmp_path / "first", {"rows/some.jsonl": jsonl(ROWS)})
    again = prepare(tmp_path / "again", {"rows/some.jsonl": jsonl(first.kept)})
    assert again.splits == first.splits and again.rejected == []


def test_two_keys_may_not_name_one_column() -> None:
    with pytest.raises(ValueError, match="two of them name the column chat"):
        Columns.model_validate(columns(instruction="chat", response="chat"))
