"""Records that are ready, on disk as they come, so that work which is stopped goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from howto.core.atomic import named

R = TypeVar("R", bound=BaseModel)


class Journal(Generic[R]):
    """A JSONL file that records are put behind. What a kill cut off in the midst of a line is not there.

    `found` are the records that were in the file when it was opened, and `broken` the line at which they end because
    it is none (b"" if there is no such line). The file stays as it is until the first record is added.
    """

    def __init__(self, file: IO[bytes], found: list[R], broken: bytes, end: int) -> None:
        self._file, self._end = file, end
        self.found, self.broken = found, broken

    def add(self, record: R) -> None:
        """Put a record into the file; it is there also if this process is killed at once."""
        if self.broken:
            self._file.truncate(self._end)
            self.broken = b""
        self._file.write(json.dumps(record.model_dump(), ensure_ascii=False).encode() + b"\n")
        self._file.flush()


@contextmanager
def journal(path: Path, kind: type[R]) -> Iterator[Journal[R]]:
    """Open the journal at `path`, or begin one. Whole records are taken up, up to the first line that is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with named(path), path.open("a+b") as file:
        file.seek(0)
        found, broken, end = _whole(file, kind)
        file.seek(0, os.SEEK_END)
        yield Journal(file, found, broken, end)


def records(path: Path, kind: type[R]) -> list[R]:
    """The whole records of a journal that another process may be writing."""
    with path.open("rb") as file:
        return _whole(file, kind)[0]


def _whole(file: IO[bytes], kind: type[R]) -> tuple[list[R], bytes, int]:
    """The records up to the first line that is none, that line, and the place where it begins."""
    found: list[R] = []
    end = 0
    for line in file:
        try:
            record = kind.model_validate_json(line) if line.endswith(b"\n") else None
        except ValidationError:
            record = None
        if record is None:
            return found, line, end
        found.append(record)
        end += len(line)
    return found, b"", end
