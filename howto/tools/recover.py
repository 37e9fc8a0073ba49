"""Repair what a killed DVC leaves behind, so that the next `dvc repro` completes. `make run` does this first.

DVC writes two files in place: dvc.lock, and .dvc/tmp/rwlock, which lists the processes that read or write outputs. If
DVC is killed while it writes, half a file remains, and DVC refuses to run. DVC also refuses if a process of that list
was killed and its number belongs to another process now, as after a restart of a container. Half-copied files in the
cache stop nothing, but DVC never removes them.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import psutil

from howto.core.atomic import atomic_file
from howto.core.dvc_lock import dvc_root, read_lock
from howto.core.errors import UserError
from howto.core.paths import LOCK
from howto.core.process import is_dvc

COPY_TIMEOUT = 3600  # seconds without a write, after which a partial copy is abandoned
CONFLICT = b"<<<<<<< "  # git's marker, which only a person can resolve


def recover() -> None:
    """Repair what needs it and print one line for each repair. While DVC runs, do nothing.

    Raise UserError if a file is damaged, and a stage that may be about to write it is running.
    """
    from dvc.lock import LockError, make_lock

    root = dvc_root()
    if root is None or not (root / ".dvc/tmp").is_dir():
        return
    dvc = Path(os.path.relpath(root / ".dvc"))
    try:  # DVC holds the first lock while it writes dvc.lock, and the second while it writes rwlock
        with make_lock(str(dvc / "tmp/lock")), make_lock(str(dvc / "tmp/rwlock.lock")):
            for repair in (_recover_rwlock, _recover_lock, _clean_cache):
                if done := repair(dvc):
                    print(f"recover: {done}")
    except LockError:
        return


def _recover_rwlock(dvc: Path) -> str:
    """Remove rwlock if DVC cannot read it; else remove killed processes whose numbers belong to others now."""
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    rwlock = dvc / "tmp/rwlock"
    if not rwlock.exists():
        return ""
    try:
        entries = SCHEMA(json.loads(rwlock.read_text(encoding="utf-8")))
    except (ValueError, Invalid):
        _check_that_no_stage_runs(rwlock, dvc)
        rwlock.unlink()
        return f"{rwlock} was half-written when DVC was killed; removed"
    written = rwlock.stat().st_mtime
    processes = [*entries["write"].values(), *(one for readers in entries["read"].values() for one in readers)]
    dead = {one["pid"] for one in processes if _started_after(one["pid"], written)}
    if not dead:
        return ""
    write = {path: one for path, one in entries["write"].items() if one["pid"] not in dead}
    read = {path: [one for one in readers if one["pid"] not in dead] for path, readers in entries["read"].items()}
    with atomic_file(rwlock) as file:
        json.dump({"write": write, "read": {path: readers for path, readers in read.items() if readers}}, file)
    numbers = ", ".join(map(str, sorted(dead)))
    return f"{rwlock} listed killed processes whose numbers belong to others now ({numbers}); removed them"


def _started_after(pid: int, moment: float) -> bool:
    """Return whether a process with this number runs, and started after `moment`, in seconds since the epoch."""
    try:
        return bool(psutil.Process(pid).create_time() > moment)
    except psutil.Error:  # it has ended, which DVC notices, or belongs to another user
        return False


def _recover_lock(dvc: Path) -> str:
    """Replace a damaged dvc.lock with git's, or remove it; DVC restores the missing stages from its run cache."""
    if not LOCK.exists():
        return ""
    damaged = LOCK.read_bytes()
    try:
        read_lock()
        if damaged.endswith(b"\n"):  # a file that was cut within a line can still be valid YAML
            return ""
    except UserError:
        if CONFLICT in damaged:
            return ""
    _check_that_no_stage_runs(LOCK, dvc)
    copy = dvc / "tmp/dvc.lock.broken"
    with atomic_file(copy, "wb") as file:
        file.write(damaged)
    committed = subprocess.run(["git", "show", f":./{LOCK}"], check=False, capture_output=True)
    if committed.returncode or committed.stdout == damaged:
        LOCK.unlink()
        return f"{LOCK} was half-written when DVC was killed; removed (a copy is in {copy})"
    with atomic_file(LOCK, "wb") as file:
        file.write(committed.stdout)
    return f"{LOCK} was half-written when DVC was killed; restored from git (a copy is in {copy})"


def _clean_cache(dvc: Path) -> str:
    """Remove half-copied files from DVC's cache, if the cache is in this project."""
    now, cache = time.time(), dvc / "cache/files"
    abandoned = [path for path in cache.rglob(".*.tmp") if now - path.stat().st_mtime > COPY_TIMEOUT]
    size = sum(path.stat().st_size for path in abandoned)
    for path in abandoned:
        path.unlink(missing_ok=True)
    return f"removed {len(abandoned)} half-copied file(s) from {cache} ({size:,} bytes)" if abandoned else ""


def _check_that_no_stage_runs(path: Path, dvc: Path) -> None:
    """Raise UserError if DVC, or a stage that it started, runs in this project; `path` is the damaged file."""
    root = dvc.resolve().parent
    for process in psutil.process_iter():
        try:
            runs_here = process.environ().get("DVC_ROOT") == str(root)
            runs_here = runs_here or (is_dvc(process) and Path(process.cwd()).is_relative_to(root))
        except psutil.Error:  # it has ended, or belongs to another user
            continue
        if runs_here and process.pid != psutil.Process().pid:
            raise UserError(f"{path}: damaged, and DVC's process {process.pid} is running. Wait for it or end it.")
