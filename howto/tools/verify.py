"""Run HEAD again in a fresh clone, and compare every output with its hash in the committed dvc.lock.

howto verify             `make run`, which sets up a new environment in the clone
howto verify --here      `dvc repro` in this environment
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from howto.core.dvc_lock import LockedStage, dvc_root, read_lock
from howto.core.errors import UserError
from howto.core.instruction_set import cpu_name, has_avx2
from howto.core.paths import LOCK

Lock = dict[str, LockedStage]
# Variables that describe this folder or this environment, and would mislead git, make and Python in the clone.
OF_THIS_FOLDER = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
OF_THIS_ENVIRONMENT = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}
ONLY_IN_CACHE = ("deleted", "not in cache")  # the words of `dvc status` for outputs that git does not have


def verify(*, here: bool) -> None:
    """Verify HEAD. Exit with 0 if each output has its committed hash, else with 1.

    Raise UserError if HEAD has no dvc.lock, or one that does not match the rest of HEAD.
    """
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # sent when the terminal is closed
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    root = Path.cwd()
    commit = _output(root, "git", "rev-parse", "HEAD").strip()
    status_here = "git", "-c", "core.quotePath=false", "status", "--porcelain", "."
    if changed := _output(root, *status_here).splitlines():
        print(f"verify: HEAD is verified, without uncommitted changes: {', '.join(line[3:] for line in changed)}")
    with cloned(root, commit) as clone:
        committed = _committed_lock(clone)
        for path in [str(LOCK), *(path for stage in committed.values() for path in stage.outs)]:
            (clone / path).unlink(missing_ok=True)  # git has dvc.lock and some outputs
        command = ["dvc", "repro"] if here else ["make", "run"]
        name = f"`{' '.join(command)}`"
        print(f"verify: {name} of commit {commit[:7]} in {clone}", flush=True)
        status = _run(command, clone, here=here)
        made = read_lock(clone / LOCK) if (clone / LOCK).exists() else {}
    expected, found = _hashes(committed), _hashes(made)
    outputs = {**found, **expected}  # in the order in which the stages ran
    different = [output for output in outputs if expected.get(output) != found.get(output)]
    if not different and not status:
        print(f"REPRODUCED: all {len(outputs)} outputs of {len(committed)} stages have their committed hash.")
        return
    for output in different:
        hashes = [lock.get(output, "none")[:8] for lock in (expected, found)]
        print(f"{output[0]}: {output[1]}: expected {hashes[0]}, got {hashes[1]}")
    for line in _causes(committed, made, here=here):
        print(line)
    print(f"FAILED: {name} ended with status {status}; {len(different)} of {len(outputs)} outputs differ.")
    sys.exit(1)


def _hashes(lock: Lock) -> dict[tuple[str, str], str]:
    """Return the hash of each output, by stage and path."""
    return {(name, path): md5 for name, stage in lock.items() for path, md5 in stage.outs.items()}


def _causes(committed: Lock, made: Lock, *, here: bool) -> list[str]:
    """Return where a difference begins, and what may explain it: the CPU, and packages unlike requirements.lock."""
    from howto.tools.doctor import REQUIREMENTS, packages_unlike_lock

    both = [(name, stage, committed[name]) for name, stage in made.items() if name in committed]
    first = [name for name, now, before in both if now.outs != before.outs and now.deps == before.deps]
    missing, different = packages_unlike_lock() if here and REQUIREMENTS.exists() else ([], [])
    return [
        *(f"{name} differs although its code, params and inputs are equal." for name in first),
        f"CPU: {cpu_name()}{'' if has_avx2() else ', without AVX2 and FMA'}",
        *(f"not as in {REQUIREMENTS}: {package}" for package in [*missing, *different]),
    ]


@contextmanager
def cloned(root: Path, commit: str) -> Iterator[Path]:
    """Clone what git has at `commit`, with DVC caches of its own, and give the project's folder in the clone.

    The project and DVC's root may be folders in a larger repository. The clone is removed whatever happens.
    """
    clone = Path(tempfile.mkdtemp(prefix="verify-")).resolve()
    top = Path(_output(root, "git", "rev-parse", "--show-toplevel").removesuffix("\n"))
    try:
        _output(root, "git", "clone", "--quiet", "--no-checkout", str(top), str(clone))
        _output(clone, "git", "checkout", "--quiet", "--detach", commit)
        dvc = clone / (dvc_root() or root).relative_to(top) / ".dvc"
        dvc.mkdir(parents=True, exist_ok=True)
        caches = [f'[core]\n    site_cache_dir = "{dvc}/tmp/site"', f'[cache]\n    dir = "{dvc}/cache"', ""]
        (dvc / "config.local").write_text("\n".join(caches), encoding="utf-8")
        yield clone / root.relative_to(top)
    finally:
        # After a signal this process has a few seconds left: too few to remove an environment with many files.
        subprocess.Popen(["rm", "-rf", str(clone)], start_new_session=True).wait()


def _committed_lock(clone: Path) -> Lock:
    """Read the dvc.lock of HEAD, and check that it matches the dvc.yaml, params, code and outputs that git has."""
    try:
        committed = read_lock(clone / LOCK)
    except UserError as error:
        raise UserError(str(error).replace(f"{clone}/", "HEAD:")) from None
    stale: set[str] = set()
    for stage, changes in json.loads(_output(clone, "dvc", "status", "--json", "dvc.yaml")).items():
        if stage not in committed:
            stale.add(f"{stage}: new stage")
        for change in changes:  # "changed command", or {"changed deps": {path: "modified"}}
            parts = {"command": change} if isinstance(change, str) else next(iter(change.values()))
            stale |= {f"{stage}: {part}" for part, how in parts.items() if how not in ONLY_IN_CACHE}
    if stale:
        what = ", ".join(sorted(stale)[:3]) + (f" and {len(stale) - 3} more" if len(stale) > 3 else "")
        raise UserError(f"HEAD:{LOCK}: does not match what is committed ({what}). Run `dvc repro` and commit.")
    return committed


def _run(command: list[str], clone: Path, *, here: bool) -> int:
    """Run a command in the clone and return its exit status. A signal to this process ends all that it started."""
    environment = _environment(here=here)
    process = subprocess.Popen(command, cwd=clone, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _output(folder: Path, *command: str) -> str:
    """Return what a command prints. Raises UserError if it fails."""
    done = subprocess.run(command, check=False, cwd=folder, env=_environment(here=True), capture_output=True, text=True)
    if done.returncode:
        problem = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{' '.join(command[:2])}: {problem}. Commit a DVC project that works, then verify it.")
    return done.stdout


def _environment(*, here: bool) -> dict[str, str]:
    left_out = OF_THIS_FOLDER if here else OF_THIS_FOLDER | OF_THIS_ENVIRONMENT
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    if here:
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    return environment
