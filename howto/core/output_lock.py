"""A lock on an output, so that only one process makes it at a time.

DVC prevents two `dvc repro` from running one stage. It does not prevent a stage run by hand beside one that DVC runs,
nor a new stage beside an orphan whose DVC was killed a moment ago.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from howto.core.errors import UserError
from howto.core.process import GRACE, POLL, RANK

PATIENCE = GRACE + 10 * POLL  # seconds; an orphan has ended by then


@contextmanager
def output_lock(output: Path) -> Iterator[None]:
    """Hold the lock on `output`. The kernel releases it when the process ends, even by SIGKILL.

    Raise UserError if another process holds it and does not end.
    """
    # In a group only one process takes the lock: the one that started the others, or torchrun's first on this host.
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
        raise UserError(f"{output}: process {_holder(path)} is making it. Wait until it ends, or stop it.") from None
    try:
        with suppress(OSError):  # a full disk; the lock holds without the number
            path.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while the lock is held, so that a waiting process sees that the file was removed
        lock.release()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "?"
    except OSError:
        return "?"
