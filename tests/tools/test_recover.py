"""What a DVC that was killed cannot mend itself is mended, and nothing that belongs to one at work is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT

YAML = "stages:\n  copy:\n    cmd: cp seed.txt made.txt\n    deps: [seed.txt]\n    outs: [made.txt]\n"
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    **{f"GIT_{role}_{part}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")},
}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="locks and signals are POSIX's")


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def heal(folder: Path) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "howto", "recover")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one stage, which has run and is committed. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
    (folder / ".gitignore").write_text("/made.txt\n/.dvc/tmp/\n/.dvc/cache/\n", encoding="utf-8")
    (folder / "dvc.yaml").write_text(YAML, encoding="utf-8")
    (folder / "seed.txt").write_text("1", encoding="utf-8")
    for command in (["git", "init", "-q"], ["dvc", "repro"], ["git", "add", "-A"], ["git", "commit", "-qm", "run"]):
        done = run(folder, *command)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "project"))


def damage_rwlock(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / ".dvc/tmp/rwlock").write_text(text, encoding="utf-8")

    return write


def cut_lock(before: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        text = (folder / "dvc.lock").read_text(encoding="utf-8")
        (folder / "dvc.lock").write_text(text[: text.index(before)], encoding="utf-8")

    return cut


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(damage_rwlock(""), id="rwlock-empty"),
        pytest.param(damage_rwlock('{"write": {"/home/'), id="rwlock-half"),
        pytest.param(damage_rwlock('{"write": 3}'), id="rwlock-of-another-form"),
        pytest.param(cut_lock(""), id="lock-empty"),
        pytest.param(cut_lock("cmd: "), id="lock-half"),
    ],
)
def test_what_stops_dvc_after_a_kill_is_mended_and_nothing_runs_again(
    project: Path, damage: Callable[[Path], None]
) -> None:
    before = (project / "dvc.lock").read_bytes()
    damage(project)
    assert run(project, "dvc", "repro").returncode != 0  # else this module has nothing to do any more
    done = heal(project)
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr
    assert "half-written when DVC was killed" in done.stdout
    done = run(project, "dvc", "repro")
    assert done.returncode == 0 and "Running stage" not in done.stdout, done.stderr
    assert (project / "dvc.lock").read_bytes() == before


def test_without_git_a_half_written_lock_is_made_again_from_the_cache(project: Path) -> None:
    before = (project / "dvc.lock").read_bytes()
    shutil.rmtree(project / ".git")
    (project / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    cut_lock("")(project)
    assert "removed" in heal(project).stdout
    assert (project / ".dvc/tmp/dvc.lock.broken").read_bytes() == b""
    done = run(project, "dvc", "repro")
    assert done.returncode == 0 and "Stage 'copy' is cached" in done.stdout, done.stderr
    assert (project / "dvc.lock").read_bytes() == before


def test_a_lock_that_was_cut_to_one_that_dvc_takes_is_mended_too(project: Path) -> None:
    whole = (project / "dvc.lock").read_bytes()
    (project / "dvc.lock").write_bytes(whole[:-1])
    assert "git's is back" in heal(project).stdout
    assert (project / "dvc.lock").read_bytes() == whole


def test_half_of_a_file_in_the_cache_goes_when_nobody_writes_on(project: Path) -> None:
    folder = next((project / ".dvc/cache/files/md5").iterdir())
    old, new = folder / ".3lATSIYdIU4ELDrVmURQ0Q.tmp", folder / ".4lATSIYdIU4ELDrVmURQ0Q.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    objects = {path for path in folder.iterdir() if not path.name.startswith(".")}
    assert "1 half-copied files removed" in heal(project).stdout
    assert set(folder.iterdir()) == objects | {new} and objects


def test_where_nothing_is_broken_nothing_is_touched_or_said(project: Path) -> None:
    before = {path: path.read_bytes() for path in (project / "dvc.lock", project / ".dvc/tmp/rwlock")}
    done = heal(project)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path: path.read_bytes() for path in before} == before


def test_a_lock_with_a_conflict_of_git_is_left_to_a_person(project: Path) -> None:
    text = "<<<<<<< ours\nschema: '2.0'\n=======\nschema: '2.1'\n>>>>>>> theirs\n"
    (project / "dvc.lock").write_text(text, encoding="utf-8")
    done = heal(project)
    assert (done.returncode, done.stdout) == (0, "")
    assert (project / "dvc.lock").read_text(encoding="utf-8") == text


def test_the_number_of_a_killed_process_that_another_one_has_now_is_taken_out(project: Path) -> None:
    me = psutil.Process()
    rwlock = project / ".dvc/tmp/rwlock"
    busy = {"write": {str(project / "made.txt"): {"pid": me.pid, "cmd": "dvc repro"}}, "read": {}}
    rwlock.write_text(json.dumps(busy), encoding="utf-8")
    assert heal(project).stdout == ""  # this process was there when it was written: it may be the one
    assert json.loads(rwlock.read_text(encoding="utf-8")) == busy
    os.utime(rwlock, (me.create_time() - 60, me.create_time() - 60))
    assert "is busy" in run(project, "dvc", "repro", "--force").stderr
    assert f"({me.pid}); taken out" in heal(project).stdout
    done = run(project, "dvc", "repro")
    assert done.returncode == 0, done.stderr


def test_nothing_is_mended_under_the_hands_of_a_dvc_at_work(project: Path) -> None:
    os.mkfifo(project / "begun")
    os.mkfifo(project / "go_on")
    slow = YAML + "  slow:\n    cmd: echo > begun && cat go_on > slow.txt\n    outs: [slow.txt]\n"
    (project / "dvc.yaml").write_text(slow, encoding="utf-8")
    with subprocess.Popen(
        ["dvc", "repro", "slow"], cwd=project, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as dvc:
        (project / "begun").read_text(encoding="utf-8")  # waits for the stage
        rwlock = project / ".dvc/tmp/rwlock"
        whole = rwlock.read_text(encoding="utf-8")
        rwlock.write_text("", encoding="utf-8")
        done = heal(project)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "is at work here" in done.stderr
        assert rwlock.read_text(encoding="utf-8") == ""
        rwlock.write_text(whole, encoding="utf-8")
        (project / "go_on").write_text("on", encoding="utf-8")
        said, _ = dvc.communicate(timeout=60)
    assert dvc.returncode == 0, said
