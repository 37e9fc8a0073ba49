"""One process at a time makes an output: two runs of a stage would work under each other's hands.

DVC keeps two `dvc repro` from one stage, but not a stage that was run by hand from one that DVC runs, nor one that it
has just started from one whose DVC was killed and that has not noticed yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from howto.core.errors import UserError
from howto.core.process import GRACE, LOOK, RANK

PATIENCE = GRACE + 10 * LOOK  # seconds: by then one that was to end has ended, and what still goes on is at work


@contextmanager
def output_lock(output: Path) -> Iterator[None]:
    """Hold the right to make `output`. The kernel takes it back when the process ends, however it does.

    Raises:
        UserError: another process makes it, and does not end.
    """
    # Of several processes one holds it: the one that started the others, or the first that torchrun started here.
    if RANK in os.environ or os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return

    from filelock import FileLock, Timeout

    path = output.with_name(f".{output.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise UserError(
            f"{output}: process {_holder(path)} is making it at this moment; wait until it has ended, or end it"
        ) from None
    try:
        with suppress(OSError):  # a full disk: the number is for people, and the lock holds without it
            path.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held: one that waits for this file sees that it has no name any more
        lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "?"
    except OSError:
        return "?"
