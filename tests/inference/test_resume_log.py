"""What was put into a journal comes back, however its writer ended; what is no record makes way for the next one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from howto.inference.resume_log import journal


class Note(BaseModel):
    model_config = ConfigDict(strict=True)
    number: int
    text: str
    score: float | None = None


NOTES = [
    Note(number=1, text="plain"),
    Note(number=2, text="two\nlines, \u2028 and \x85", score=-1.0),
    Note(number=3, text="grün 🌿", score=0.1 + 0.2),
]


def write(path: Path, *notes: Note) -> bytes:
    with journal(path, Note) as file:
        for note in notes:
            file.add(note)
    return path.read_bytes()


def found(path: Path) -> list[Note]:
    with journal(path, Note) as file:
        return list(file.found)


def test_records_come_back_as_they_were_in_their_order_and_more_go_behind_them(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "notes.jsonl"
    write(path, *NOTES[:2])
    assert found(path) == NOTES[:2]
    write(path, NOTES[2])
    assert found(path) == NOTES
    assert path.read_bytes() == write(tmp_path / "at_once.jsonl", *NOTES)


def test_a_record_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    with journal(path, Note) as file:
        for number, note in enumerate(NOTES, 1):
            file.add(note)
            assert path.read_bytes().count(b"\n") == number


def test_wherever_a_kill_cuts_the_last_line_the_same_bytes_come_of_going_on(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    whole = write(path, *NOTES)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        there = whole[:size].count(b"\n")
        assert found(path) == NOTES[:there]
        assert write(path, *NOTES[there:]) == whole


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{}\n",
        b'{"number": 2}\n',
        b'{"number": "2", "text": ""}\n',
        b"[]\n",
        b"\xff\n",
        b"\0\0\0\n",
        b"{" * 9999,
    ],
)
def test_from_a_line_that_is_no_record_on_everything_is_made_again(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "notes.jsonl"
    whole = write(path, *NOTES)
    first, second, third = whole.splitlines(keepends=True)
    path.write_bytes(first + line + third)
    with journal(path, Note) as file:
        assert file.found == NOTES[:1]
        assert file.broken == line if line.endswith(b"\n") else file.broken == line + third
        for note in NOTES[1:]:
            file.add(note)
    assert path.read_bytes() == first + second + third


def test_a_file_that_is_not_what_it_should_be_stays_as_it_is_until_something_is_added(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(b"Dear Ann,\nall is well.\n")
    with journal(path, Note) as file:
        assert file.found == [] and file.broken == b"Dear Ann,\n"
    assert path.read_bytes() == b"Dear Ann,\nall is well.\n"
