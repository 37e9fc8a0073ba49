"""Mend what a DVC that was killed cannot mend itself, so that the next `dvc repro` completes. `make run` does it first.

howto recover

DVC writes two files in place, and half of one is left where it is killed meanwhile: dvc.lock, and .dvc/tmp/rwlock, its
list of who reads and who writes what. With half of either it refuses to run. And it takes a process of that list for
alive, where it was killed and another process has got its number since, as after a restart of a container. Half a file
that it was copying into its cache is never used, and never removed.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from howto.core.atomic import atomic_file
from howto.core.errors import UserError
from howto.core.process import is_dvc

LOCK = Path("dvc.lock")
TMP = Path(".dvc/tmp")
RWLOCK = TMP / "rwlock"
BROKEN = TMP / "dvc.lock.broken"
CACHE = Path(".dvc/cache/files")
ABANDONED = 3600  # seconds after which nobody writes on: a copy that goes on has been written to just now
CONFLICT = b"<<<<<<< "  # of git: a person has to resolve it


def main() -> None:
    """Mend what needs it, and say so."""
    if TMP.is_dir():
        for line in heal():
            print(f"heal: {line}")


def heal() -> list[str]:
    """Mend what needs it; what was done.

    Raises:
        UserError: there is something to mend, and a DVC at work that may be about to write it.
    """
    from dvc.lock import LockError, make_lock

    try:  # whoever writes dvc.lock holds the first of these, and whoever writes the list the second
        with make_lock(str(TMP / "lock")), make_lock(str(TMP / "rwlock.lock")):
            return [line for line in (heal_rwlock(), heal_lock(), heal_cache()) if line]
    except LockError:
        return []  # a living DVC, which has its own words for it


def heal_rwlock() -> str:
    """Remove the list if it cannot be read, and from it those who died before it was last written."""
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    if not RWLOCK.exists():
        return ""
    try:
        held = SCHEMA(json.loads(RWLOCK.read_text(encoding="utf-8")))
    except (ValueError, Invalid):
        check_nobody_works(RWLOCK)
        RWLOCK.unlink()
        return f"{RWLOCK} was half-written when DVC was killed; removed"
    written = RWLOCK.stat().st_mtime
    dead = {one["pid"] for one in _processes(held) if began_after(one["pid"], written)}
    if not dead:
        return ""
    writers = {path: one for path, one in held["write"].items() if one["pid"] not in dead}
    readers = {path: [one for one in all_ if one["pid"] not in dead] for path, all_ in held["read"].items()}
    with atomic_file(RWLOCK) as file:
        json.dump({"write": writers, "read": {path: left for path, left in readers.items() if left}}, file)
    numbers = ", ".join(map(str, sorted(dead)))
    return f"{RWLOCK} named processes that were killed and whose numbers others have now ({numbers}); taken out"


def _processes(held: dict[str, Any]) -> list[dict[str, Any]]:
    return [*held["write"].values(), *(one for readers in held["read"].values() for one in readers)]


def began_after(pid: int, moment: float) -> bool:
    """Whether there is such a process, and it was not yet there at that moment, in seconds since the epoch."""
    try:
        return bool(psutil.Process(pid).create_time() > moment)
    except psutil.Error:  # there is none, as DVC sees too; or it cannot be asked
        return False


def heal_lock() -> str:
    """Bring back git's dvc.lock, or none, in place of one that cannot be read; DVC finds in its cache what it lacks."""
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.strictyaml import load

    if not LOCK.exists():
        return ""
    broken = LOCK.read_bytes()
    try:
        load(str(LOCK), COMPILED_LOCKFILE_SCHEMA)
        if broken.endswith(b"\n"):  # cut within a line, it may yet be one that DVC takes, with less in it
            return ""
    except DvcException:
        if CONFLICT in broken:
            return ""
    check_nobody_works(LOCK)
    with atomic_file(BROKEN, "wb") as file:
        file.write(broken)
    known = subprocess.run(["git", "show", f":./{LOCK}"], check=False, capture_output=True)
    if known.returncode or known.stdout == broken:
        LOCK.unlink()
        return f"{LOCK} was half-written when DVC was killed; removed (it lies in {BROKEN})"
    with atomic_file(LOCK, "wb") as file:
        file.write(known.stdout)
    return f"{LOCK} was half-written when DVC was killed; git's is back in its place (it lies in {BROKEN})"


def heal_cache() -> str:
    """Remove halves of files from DVC's cache, if it lies in this project."""
    long_ago = time.time() - ABANDONED
    found = [path for path in CACHE.rglob(".*.tmp") if path.stat().st_mtime < long_ago]
    size = sum(path.stat().st_size for path in found)
    for path in found:
        path.unlink(missing_ok=True)
    return f"{len(found)} half-copied files removed from {CACHE} ({size:,} bytes)" if found else ""


def check_nobody_works(path: Path) -> None:
    """Stop if a DVC, or a stage that it started, is at work in this project.

    Raises:
        UserError: the message names `path`, which is broken, and the process.
    """
    here = Path.cwd()
    for process in psutil.process_iter():
        try:
            works = process.environ().get("DVC_ROOT") == str(here) or (
                is_dvc(process) and Path(process.cwd()).is_relative_to(here)
            )
        except psutil.Error:  # of another user, or gone
            continue
        if works and process.pid != psutil.Process().pid:
            raise UserError(
                f"{path}: cannot be read, and process {process.pid} of DVC is at work here; end it, or wait"
            )
