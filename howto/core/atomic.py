"""Files and folders that are whole or absent: written aside, then renamed into place."""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO]:  # type: ignore[type-arg]
    """Open a file that appears at `path` only when the block ends without an exception.

    Until then it stands beside `path` under a name that begins with a dot and ends in `.part`; an
    older file at `path` stays until it is replaced in one step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in _left_over(path):
        left_over.unlink(missing_ok=True)
    aside = _aside(path)
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        with named(path), aside.open(mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object as JSON that a person can read, whole or not at all."""
    with atomic_file(path) as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a folder to write into; it appears at `path` only when the block ends without an exception.

    An older folder at `path` is replaced. A name that stays the same is no promise that the inode
    does: readers that hold a file of the old folder open go on reading the old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in _left_over(path):
        shutil.rmtree(left_over, ignore_errors=True)
    aside, old = _aside(path), _aside(path)
    aside.mkdir()
    try:
        with named(path):
            yield aside
        if path.exists():
            path.rename(old)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Give an error of the operating system the name of what was to be written: that of a full disk has none."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _left_over(path: Path) -> Iterator[Path]:
    """What stands beside `path` of processes that were killed."""
    return path.parent.glob(f".{glob.escape(path.name)}.*.part")


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
