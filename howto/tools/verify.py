"""Make the committed run again, from nothing, in a fresh clone, and say output by output whether it is the same.

howto verify             in a fresh environment too, as `make run` sets it up
howto verify --here      in this environment
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from howto.core.errors import UserError
from howto.core.instruction_set import cpu, has_avx2
from howto.core.paths import LOCK
from howto.tools.reproduction import Found, Lock, hashes, md5, read_lock, stages_of

# What the environment says of this folder, and would say of the clone.
OF_THIS_FOLDER = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
OF_THIS_PYTHON = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME"}


def verify(*, here: bool) -> None:
    """Verify HEAD, and exit with the verdict's status."""
    from howto.tools.verdict import print_verdict

    _end_with_the_terminal()
    sys.exit(print_verdict(make_again(Path.cwd(), here=here)))


def make_again(root: Path, *, here: bool) -> Found:
    """Run what HEAD holds in a clone of it, and see what came of it.

    Raises:
        UserError: HEAD holds no run.
    """
    if not has_avx2():
        print(
            f"verify: {cpu()[0].split(',')[0]} is no x86-64 CPU with AVX2 and FMA. The committed bytes are those of "
            "CPUs that are; expect others here."
        )
    commit = git(root, "rev-parse", "HEAD").strip()
    committed = read_lock(_at_head(root, LOCK, "commit it, as `make run` wrote it"), f"{LOCK} at HEAD")
    if changed := git(root, "status", "--porcelain").splitlines():
        print(f"verify: uncommitted changes are not verified, but HEAD: {', '.join(line[3:] for line in changed)}")
    with cloned(root, commit) as clone:
        command = [sys.executable, "-m", "dvc", "repro"] if here else ["make", "run"]
        said = "dvc repro" if here else "make run"
        print(f"verify: commit {commit[:7]}, cloned into {clone}; `{said}` there, from nothing", flush=True)
        for out in (out for stage in committed.values() for out in hashes(stage, "outs")):
            (clone / out).unlink(missing_ok=True)  # git has some of them
        status = run(command, clone, here=here)
        return found(clone, committed, f"`{said}`", status)


@contextmanager
def cloned(root: Path, commit: str) -> Iterator[Path]:
    """A clone at `commit` that has nothing but what git has, and is gone afterwards, whatever happens."""
    clone = Path(tempfile.mkdtemp(prefix="verify-")).resolve()
    try:
        git(root, "clone", "--quiet", "--no-checkout", str(root), str(clone))
        git(clone, "checkout", "--quiet", "--detach", commit)
        # What other folders share, by this user's settings, would be taken for made here.
        own = f"[core]\n    site_cache_dir = {clone}/.dvc/tmp/site\n[cache]\n    dir = {clone}/.dvc/cache\n"
        (clone / ".dvc").mkdir(exist_ok=True)
        (clone / ".dvc/config.local").write_text(own, encoding="utf-8")
        yield clone
    finally:
        # By a process of its own: this one has seconds to live after a signal, and an environment has many files.
        subprocess.Popen(["rm", "-rf", str(clone)], start_new_session=True).wait()


def run(command: list[str], clone: Path, *, here: bool) -> int:
    """Run a command in the clone, in sight, and give its exit status. It ends when this process is told to."""
    left_out = OF_THIS_FOLDER | (set() if here else OF_THIS_PYTHON)
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    if here:
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    # In a session of its own all that it starts can be ended at once.
    process = subprocess.Popen(command, cwd=clone, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def found(clone: Path, committed: Lock, said: str, status: int) -> Found:
    """What the run in the clone made, beside what was committed."""
    stages = stages_of(clone, committed)
    in_git = set(git(clone, "ls-files").splitlines())
    known = {path: digest for stage in committed.values() for path, digest in hashes(stage, "outs").items()}
    differ = {output.path for stage in stages for output in stage.outputs if not output.same}
    expected = differ | ({str(LOCK)} if differ or any(stage.otherwise for stage in stages) else set())
    changed = [line[3:] for line in git(clone, "status", "--porcelain").splitlines()]
    return Found(
        command=said,
        status=status,
        stages=stages,
        unlike_lock=sorted(
            path for path in in_git & known.keys() if md5(_git(clone, "show", f"HEAD:{path}")) != known[path]
        ),
        left=[path for path in changed if path not in expected],
    )


def git(folder: Path, *arguments: str) -> str:
    """What git says. Raises UserError if it fails."""
    return _git(folder, *arguments).decode("utf-8", "surrogateescape")


def _git(folder: Path, *arguments: str) -> bytes:
    environment = {key: value for key, value in os.environ.items() if key not in OF_THIS_FOLDER}
    done = subprocess.run(["git", *arguments], check=False, cwd=folder, env=environment, capture_output=True)
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"git {arguments[0]}: {said}; verifying wants a git repository with a commit")
    return done.stdout


def _at_head(folder: Path, path: Path, otherwise: str = "") -> str:
    if not git(folder, "ls-tree", "HEAD", str(path)):
        raise UserError(f"{path}: not in HEAD; {otherwise}")
    return git(folder, "show", f"HEAD:{path}")


def _end_with_the_terminal() -> None:
    """When its terminal is closed, end as after SIGTERM: what was started would go on unseen."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
