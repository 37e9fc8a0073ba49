"""Atomic writes: a file or folder is written under a temporary name and then renamed, so it is complete or absent."""

import csv
import glob
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from uuid import uuid4


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO]:  # type: ignore[type-arg]
    """Open a file that appears at `path` when the block ends without an exception.

    Until then it is beside `path` under a name that begins with a dot and ends in `.part`. An older file at `path` is
    replaced in one step.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in _left_over(path):
        left_over.unlink(missing_ok=True)
    temporary = _temporary(path)
    encoding, newline = (None, None) if "b" in mode else ("utf-8", "\n")
    try:
        with named(path), temporary.open(mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object atomically as indented JSON."""
    with atomic_file(path) as file:
        json.dump(values, file, indent=2, ensure_ascii=False)
        file.write("\n")


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows, the header first, atomically as CSV."""
    with atomic_file(path) as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a folder to write into. It appears at `path` when the block ends without an exception.

    An older folder at `path` is replaced. A reader that holds a file of the old folder open keeps reading the old file.
    Its files get the mode that new files have here: safetensors lets only the owner read what it writes, whatever the
    umask is, so a shared cache could not serve it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in _left_over(path):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary, old = _temporary(path), _temporary(path)
    temporary.mkdir()
    try:
        with named(path):
            yield temporary
        mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666  # the folder has it from the umask
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(mode)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add `path` to an error of the operating system that names no file, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _left_over(path: Path) -> Iterator[Path]:
    """Yield the temporary files that killed processes left beside `path`."""
    return path.parent.glob(f".{glob.escape(path.name)}.*.part")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
