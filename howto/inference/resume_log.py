"""A JSONL file of finished records, so that a stopped run can resume."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from howto.core.atomic import named

R = TypeVar("R", bound=BaseModel)


def read_log(path: Path, kind: type[R]) -> list[R]:
    """Return the records before the first incomplete or invalid line; without a file, no records."""
    return [record for record, _ in _read(path, kind)]


@contextmanager
def open_log(path: Path, kind: type[R]) -> Iterator[Callable[[R], None]]:
    """Open or create a log, and give a function that appends a record, which then survives a kill of this process.

    The first incomplete or invalid line, and what follows it, is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with named(path), path.open("ab") as file:
        file.truncate(sum(size for _, size in _read(path, kind)))

        def append(record: R) -> None:
            file.write(json.dumps(record.model_dump(), ensure_ascii=False).encode() + b"\n")
            file.flush()

        yield append


def _read(path: Path, kind: type[R]) -> Iterator[tuple[R, int]]:
    """Yield each valid record, and the bytes of its line."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    for line in lines:
        try:
            record = kind.model_validate_json(line if line.endswith(b"\n") else b"")
        except ValidationError:
            return
        yield record, len(line)
