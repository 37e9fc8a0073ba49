"""What a killed DVC cannot repair itself is repaired, and nothing that a running DVC uses is touched."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

from howto.tools.cli import main
from tests.conftest import ENVIRONMENT, call, run
from tests.support.in_process import Done, run_here

YAML = "stages:\n  copy:\n    cmd: cp seed.txt made.txt\n    deps: [seed.txt]\n    outs: [made.txt]\n"


def recover(folder: Path) -> Done:
    return run_here(main, folder, "recover")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of one stage, which has run and is committed. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
    (folder / ".gitignore").write_text("/made.txt\n/.dvc/tmp/\n/.dvc/cache/\n", encoding="utf-8")
    (folder / "dvc.yaml").write_text(YAML, encoding="utf-8")
    (folder / "seed.txt").write_text("1", encoding="utf-8")
    for command in ("git init -q", "dvc repro", "git add -A", "git commit -qm run"):
        run(folder, *command.split())
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "project"))


@pytest.mark.parametrize(
    ("name", "damaged"),
    [
        (".dvc/tmp/rwlock", ""),
        (".dvc/tmp/rwlock", '{"write": {"/home/'),
        ("dvc.lock", "schema: '2.0'\nstages:\n  copy:\n    "),
        ("dvc.lock", "schema: '2.0'\nstages:\n  copy:\n    cmd: cp seed.txt made.txt\n    deps:\n"),
    ],
)
def test_a_file_that_stops_dvc_is_repaired_and_nothing_runs_again(project: Path, name: str, damaged: str) -> None:
    before = (project / "dvc.lock").read_bytes()
    (project / name).write_text(damaged, encoding="utf-8")
    assert call(project, "dvc", "repro").returncode != 0  # otherwise this module is no longer needed
    recovered = recover(project)
    assert recovered.returncode == 0 and recovered.stdout.count("\n") == 1, recovered.stderr
    assert recovered.stdout.startswith("recover: ") and "half-written when DVC was killed" in recovered.stdout
    done = call(project, "dvc", "repro")
    assert done.returncode == 0 and "Running stage" not in done.stdout, done.stderr
    assert (project / "dvc.lock").read_bytes() == before


def test_without_git_a_damaged_lock_is_made_again_from_the_run_cache(project: Path) -> None:
    before = (project / "dvc.lock").read_bytes()
    shutil.rmtree(project / ".git")
    (project / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    (project / "dvc.lock").write_text("half", encoding="utf-8")
    assert "removed" in recover(project).stdout
    assert (project / ".dvc/tmp/dvc.lock.broken").read_bytes() == b"half"
    done = call(project, "dvc", "repro")
    assert done.returncode == 0 and "Stage 'copy' is cached" in done.stdout, done.stderr
    assert (project / "dvc.lock").read_bytes() == before


def test_a_lock_that_was_cut_within_its_last_line_is_repaired(project: Path) -> None:
    before = (project / "dvc.lock").read_bytes()
    (project / "dvc.lock").write_bytes(before[:-1])
    assert "restored from git" in recover(project).stdout
    assert (project / "dvc.lock").read_bytes() == before


def test_a_half_copied_file_in_the_cache_is_removed_when_it_is_no_longer_written(project: Path) -> None:
    folder = next((project / ".dvc/cache/files/md5").iterdir())
    old, new = folder / ".3lATSIYdIU4ELDrVmURQ0Q.tmp", folder / ".4lATSIYdIU4ELDrVmURQ0Q.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (1e9, 1e9))
    objects = {path for path in folder.iterdir() if not path.name.startswith(".")}
    assert "removed 1 half-copied file" in recover(project).stdout
    assert set(folder.iterdir()) == objects | {new} and objects


@pytest.mark.parametrize("conflict", [False, True])
def test_a_sound_lock_and_one_with_gits_conflict_are_left_as_they_are(project: Path, conflict: bool) -> None:
    if conflict:
        (project / "dvc.lock").write_text("<<<<<<< ours\nschema: '2.0'\n=======\n>>>>>>> theirs\n", encoding="utf-8")
    before = {path: path.read_bytes() for path in (project / "dvc.lock", project / ".dvc/tmp/rwlock")}
    done = recover(project)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path: path.read_bytes() for path in before} == before


def test_a_killed_process_whose_number_another_one_has_is_removed_from_the_list(project: Path) -> None:
    me = psutil.Process()
    rwlock = project / ".dvc/tmp/rwlock"
    busy = {"write": {str(project / "made.txt"): {"pid": me.pid, "cmd": "dvc repro"}}, "read": {}}
    rwlock.write_text(json.dumps(busy), encoding="utf-8")
    assert recover(project).stdout == ""  # this process started before the file was written: it may be the one
    assert json.loads(rwlock.read_text(encoding="utf-8")) == busy
    os.utime(rwlock, (me.create_time() - 60, me.create_time() - 60))
    assert "is busy" in call(project, "dvc", "repro", "--force").stderr
    assert f"({me.pid}); removed" in recover(project).stdout
    done = call(project, "dvc", "repro")
    assert done.returncode == 0, done.stderr


def test_nothing_is_repaired_while_a_stage_runs(project: Path) -> None:
    os.mkfifo(project / "begun")
    os.mkfifo(project / "go_on")
    slow = YAML + "  slow:\n    cmd: echo > begun && cat go_on > slow.txt\n    outs: [slow.txt]\n"
    (project / "dvc.yaml").write_text(slow, encoding="utf-8")
    with subprocess.Popen(["dvc", "repro", "slow"], cwd=project, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as dvc:
        (project / "begun").read_text(encoding="utf-8")  # waits for the stage
        rwlock = project / ".dvc/tmp/rwlock"
        before = rwlock.read_text(encoding="utf-8")
        rwlock.write_text("", encoding="utf-8")
        done = recover(project)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "is running" in done.stderr
        assert rwlock.read_text(encoding="utf-8") == ""
        rwlock.write_text(before, encoding="utf-8")
        (project / "go_on").write_text("on", encoding="utf-8")
    assert dvc.returncode == 0
