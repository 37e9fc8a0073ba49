"""Whether the project is set up: Python, packages, git, DVC and its lock files, and a folder that can be written."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from howto.tools.finding import LOCK, OK, PROBLEM, WARNING, Asked, Finding, locked_versions, output_of

VENV = Path(".venv")
FICLONE = 0x40049409  # Linux: let a file share the blocks of another one
HEAL = "`make run` mends it, and so does `howto recover`"
WRITTEN = (".", "models", "data", "metrics", "log", ".dvc/tmp")


def check_python(asked: Asked) -> list[Finding]:
    """Its version, and whether `make run` has set up its own."""
    here = ".".join(map(str, sys.version_info[:3]))
    wanted = _wanted_python()
    if sys.version_info[:2] < wanted:
        need = ".".join(map(str, wanted))
        found = [Finding(PROBLEM, "Python", f"{here}, and {need} is needed", f"make PYTHON=python{need} ...")]
    else:
        found = [Finding(OK, "Python", f"{here} ({sys.executable})")]
    if (VENV / ".installed").exists():
        inside = Path(sys.prefix).resolve() == VENV.resolve()
        run = "" if inside else f", but this is {sys.prefix}"
        return [*found, Finding(OK, "environment", f"{VENV} is set up{run}")]
    if sys.prefix != sys.base_prefix:
        return [*found, Finding(OK, "environment", f"{sys.prefix}, set up by hand; `make run` has its own, {VENV}")]
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        what = f"Python's own module {missing[0]} is missing, so `make run` cannot set up {VENV}"
        return [
            *found,
            Finding(PROBLEM, "environment", what, "install python3-venv (Debian, Ubuntu), or another Python"),
        ]
    return [*found, Finding(WARNING, "environment", f"{VENV} is not set up yet", "`make run` sets it up")]


def _wanted_python() -> tuple[int, ...]:
    """As pyproject.toml has it."""
    try:
        found = re.search(r'requires-python = ">=(\d+)\.(\d+)"', Path("pyproject.toml").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return tuple(map(int, found.groups())) if found else (3, 11)


def check_packages(asked: Asked) -> list[Finding]:
    """Each that is not as requirements.lock has it."""
    try:
        wanted = locked_versions(Path(LOCK).read_text(encoding="utf-8"))
    except OSError:
        return [Finding(PROBLEM, "packages", f"{LOCK} cannot be read", "run from the project's root, where it lies")]
    missing, other = [], []
    for name, number in wanted.items():
        try:
            there = version(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        if there.partition("+")[0] != number.partition("+")[0]:  # torch 2.13.0+cpu is 2.13.0
            other.append(f"{name} {there} (lock: {number})")
    install = f"{sys.executable} -m pip install -r {LOCK}"
    if len(missing) == len(wanted) or (missing and not (VENV / ".installed").exists()):
        what = f"{len(missing)} of {len(wanted)} are not there"
        return [Finding(WARNING, "packages", f"{what}; what needs them was not checked", "`make run` installs them")]
    found = []
    if missing:
        found.append(Finding(PROBLEM, "packages", f"not installed: {', '.join(missing)}", install))
    if other:
        found.append(Finding(WARNING, "packages", f"other versions, perhaps other bytes: {', '.join(other)}", install))
    return found or [Finding(OK, "packages", f"all {len(wanted)} as in {LOCK}")]


def check_params(asked: Asked) -> list[Finding]:
    """params.yaml, all of it."""
    try:
        from howto.core.errors import UserError
        from howto.params import read_params
    except ImportError as error:
        return [Finding(WARNING, "params.yaml", f"could not be checked: {error}", "install the packages first")]
    try:
        params = read_params()
    except UserError as stop:
        return [Finding(PROBLEM, "params.yaml", str(stop), "mend that line")]
    return [Finding(OK, "params.yaml", f"valid; the active profile is {params.profile}")]


def check_git_and_dvc(asked: Asked) -> list[Finding]:
    """Both there, and the folder is theirs."""
    found = []
    status, _, said = output_of("git", "rev-parse", "--is-inside-work-tree")
    if status == 127:
        found.append(Finding(PROBLEM, "git", "not there", "install git"))
    elif status:
        owner = "safe.directory" in said or "dubious ownership" in said
        to_do = (
            f"git config --global --add safe.directory {Path.cwd()}" if owner else "clone the project, or `git init`"
        )
        found.append(Finding(PROBLEM, "git", f"this folder is in no repository ({said})", to_do))
    else:
        found.append(Finding(OK, "git", "the folder is in a repository"))
    dvc = Path(sys.executable).with_name("dvc")
    if not Path(".dvc/config").is_file():
        found.append(Finding(PROBLEM, "DVC", "no .dvc/config in this folder", "git checkout .dvc, or `dvc init`"))
    elif not dvc.exists():
        level = PROBLEM if (VENV / ".installed").exists() else WARNING
        found.append(Finding(level, "DVC", f"no `dvc` beside {sys.executable}", "`make run` installs it"))
    else:
        found.append(Finding(OK, "DVC", "installed and initialised"))
    return found


def check_locks(asked: Asked) -> list[Finding]:
    """dvc.lock can be read, and no DVC holds the folder, nor did one die with it."""
    return [*_dvc_lock(Path("dvc.lock")), *_running(Path(".dvc/tmp"))]


def _dvc_lock(path: Path) -> list[Finding]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return [Finding(OK, str(path), "not there: no run has ended yet")]
    except (OSError, ValueError) as error:
        return [Finding(PROBLEM, str(path), f"cannot be read ({error})", f"git checkout {path}")]
    if re.search(r"^(<{7}|={7}|>{7})", text, re.MULTILINE):
        return [
            Finding(
                PROBLEM, str(path), "a merge left its conflict markers in it", f"git checkout --ours {path}; dvc repro"
            )
        ]
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError
    except ImportError:
        return [Finding(WARNING, str(path), "could not be checked without ruamel.yaml", "install the packages first")]
    try:
        stages = YAML(typ="safe", pure=True).load(text)["stages"]
        return [Finding(OK, str(path), f"{len(stages)} stages")]
    except (YAMLError, TypeError, KeyError):
        said = "damaged, and `dvc repro` will not start"
        return [Finding(WARNING, str(path), said, HEAL)]


def _running(folder: Path) -> list[Finding]:
    """Whether a DVC is running here, by the two locks that it has."""
    path = folder / "rwlock"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        holders = {int(one["pid"]): str(one["cmd"]) for one in _entries(held)}
    except FileNotFoundError:
        holders = {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [Finding(WARNING, str(path), "damaged, and `dvc repro` will not start", HEAL)]
    if others := [pid for pid in holders if _began_after(pid, path.stat().st_mtime)]:
        said = f"names process {others[0]}, which was killed, and whose number another one has now"
        return [Finding(WARNING, str(path), said, HEAL)]
    alive = {pid: command for pid, command in holders.items() if _is_alive(pid)}
    if alive:
        pid, command = next(iter(alive.items()))
        return [Finding(WARNING, str(path), f"`{command}` is running here (process {pid})", "wait until it has ended")]
    if holders:
        pid = next(iter(holders))
        said = f"left by process {pid}, which is gone"
        return [Finding(WARNING, str(path), said, f"DVC clears it by itself; if it does not: rm {path}")]
    if _is_locked(folder / "lock"):
        return [Finding(WARNING, str(folder / "lock"), "a DVC is running here", "wait until it has ended")]
    return [Finding(OK, "DVC's locks", "nobody holds them")]


def _entries(held: dict[str, Any]) -> list[dict[str, Any]]:
    """Who writes, and who reads."""
    return [*held.get("write", {}).values(), *(one for readers in held.get("read", {}).values() for one in readers)]


def _began_after(pid: int, moment: float) -> bool:
    try:
        from howto.tools.recover import began_after
    except ImportError:  # no packages yet
        return False
    return began_after(pid, moment)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _is_locked(path: Path) -> bool:
    try:
        import fcntl

        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def check_folder(asked: Asked) -> list[Finding]:
    """The folder can be written, and what a copy in DVC's cache costs on its file system."""
    for name in WRITTEN:
        if Path(name).is_dir():
            try:
                with tempfile.NamedTemporaryFile(dir=name):
                    pass
            except OSError as error:
                where = Path(name).resolve()
                return [
                    Finding(
                        PROBLEM, "folder", f"{where}: {error.strerror}", "change its owner or mode, or clone elsewhere"
                    )
                ]
    cache = Path(".dvc/cache")
    kind, shared = _file_system(Path.cwd()), cache.is_dir() and cache.stat().st_dev != Path.cwd().stat().st_dev
    wanted = re.search(r"^\s*type\s*=\s*(.*)$", _config(), re.MULTILINE)
    if wanted and "link" in wanted[1].replace("reflink", ""):
        said = f"{kind}; cache.type is {wanted[1].strip()}: outputs are links into the cache"
    elif shared:
        said = f"{kind}; DVC's cache is on another file system: each output stands there once more"
    elif _has_reflinks(Path(".dvc") if Path(".dvc").is_dir() else Path.cwd()):
        said = f"{kind} with reflinks: DVC's cache takes no second copy"
    else:
        said = f"{kind} without reflinks: DVC's cache holds a second copy of each output"
    return [Finding(OK, "folder", f"can be written; {said}")]


def _config() -> str:
    return "\n".join(
        path.read_text(encoding="utf-8", errors="replace") for path in sorted(Path(".dvc").glob("config*"))
    )


def _file_system(path: Path) -> str:
    """Its type, as the kernel calls it."""
    try:
        lines = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return sys.platform
    at = [(len(where), kind) for _, where, kind, *_ in lines if path.is_relative_to(where)]
    return max(at)[1] if at else sys.platform


def _has_reflinks(folder: Path) -> bool:
    try:
        import fcntl

        with tempfile.NamedTemporaryFile(dir=folder) as one, tempfile.NamedTemporaryFile(dir=folder) as other:
            one.write(b"x" * 4096)
            one.flush()
            fcntl.ioctl(other.fileno(), FICLONE, one.fileno())
    except (ImportError, OSError):
        return False
    return True
