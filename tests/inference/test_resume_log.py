"""Records in a log come back, wherever a kill cut the file."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from howto.inference.resume_log import open_log, read_log


class Note(BaseModel):
    model_config = ConfigDict(strict=True)
    number: int
    text: str
    score: float | None = None


NOTES = [
    Note(number=1, text="plain"),
    Note(number=2, text="two\r\nlines, \u2028 and \x85", score=-1.0),
    Note(number=3, text="grün 🌿", score=0.1 + 0.2),
]


def append(path: Path, *notes: Note) -> bytes:
    with open_log(path, Note) as log:
        for count, note in enumerate(notes, len(read_log(path, Note)) + 1):
            log(note)
            assert len(read_log(path, Note)) == count  # in the file at once
    return path.read_bytes()


def test_wherever_a_kill_cuts_the_file_resuming_gives_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "notes.jsonl"
    assert read_log(path, Note) == []
    complete = append(path, *NOTES)
    for size in range(len(complete)):
        path.write_bytes(complete[:size])
        records = complete[:size].count(b"\n")
        assert read_log(path, Note) == NOTES[:records]
        assert append(path, *NOTES[records:]) == complete


@pytest.mark.parametrize("line", [b"\n", b'{"number": 2}\n', b'{"number": "2", "text": ""}\n', b"\xff\n", b"\0\n"])
def test_an_invalid_line_and_what_follows_it_is_removed(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "notes.jsonl"
    complete = append(path, *NOTES)
    first, _, third = complete.splitlines(keepends=True)
    path.write_bytes(first + line + third)
    assert read_log(path, Note) == NOTES[:1]
    assert append(path, *NOTES[1:]) == complete
