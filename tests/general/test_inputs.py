"""Every format of text is read in a fixed order, and the shipped files are what their data card says."""

import json
import re
from pathlib import Path

import pytest

from howto.core.errors import UserError
from howto.core.step_lists import step_numbers
from howto.general.inputs import read_questions, read_texts
from tests.conftest import ROOT

TEXTS, QUESTIONS = ROOT / "data/general/text.jsonl", ROOT / "data/chat/questions.jsonl"


def test_a_folder_is_read_in_the_order_of_its_paths_and_other_files_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/two.md").write_text("# Two\n\nIt rains.\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("\ufeffOne.", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text('{"text": "Three.\u2028"}\n\n{"text": "Four.", "more": 1}\n', encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "d.pdf").touch()
    assert list(read_texts(tmp_path)) == [
        ("a.txt", "One."),
        ("b/two.md", "# Two\n\nIt rains.\n"),
        ("c.jsonl:1", "Three.\u2028"),
        ("c.jsonl:3", "Four."),
    ]
    assert capsys.readouterr().out.strip() == f"general: not read: {tmp_path / 'd.pdf'}"
    with pytest.raises(UserError, match=r"general\.text: expected .*d\.pdf"):
        list(read_texts(tmp_path / "d.pdf"))


def test_the_shipped_passages_have_90_to_130_words_name_their_source_and_are_no_steps() -> None:
    lines = [json.loads(line) for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(list(read_texts(TEXTS))) == len({line["text"] for line in lines}) == 24
    assert all(90 <= len(line["text"].split()) <= 130 and not step_numbers(line["text"]) for line in lines)
    assert all(re.search(r", 1[789]\d\d$", line["source"]) for line in lines)


def test_no_shipped_question_is_a_how_to_or_contains_its_answer() -> None:
    questions = read_questions(QUESTIONS)
    rows = [path.read_text(encoding="utf-8") for path in (ROOT / "data/howto").glob("*.jsonl")]
    how_to = {json.loads(line)["instruction"].casefold() for text in rows for line in text.splitlines()}
    asked = [question.question.casefold() for question in questions]
    assert len(set(asked)) == 36 and not how_to & set(asked) and not any("how do i" in one for one in asked)
    assert sum(bool(question.accepted) for question in questions) == 25
    for question, text in zip(questions, asked, strict=True):
        words = {word.strip('.,?!:"()') for word in text.split()}
        assert not words & {one.casefold() for one in question.accepted}, f"an echo would be right: {text}"
