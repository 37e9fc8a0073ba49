"""Two runs at once in one folder: one of them waits or stops with a line that says why, and nothing is damaged."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.repro_trial import digest, outputs, stage_processes
from tests.conftest import ENVIRONMENT, call

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

FORCED = ["dvc", "repro", "--force", "--single-item", "fetch_data"]
SLOW = """
import os, shutil, sys, time
if sys.orig_argv[-1] == "stages.fetch_data":
    copyfile = shutil.copyfile
    def wait_and_copy(*arguments):
        while not os.path.exists(os.environ["GO_ON"]):
            time.sleep(0.01)
        return copyfile(*arguments)
    shutil.copyfile = wait_and_copy
"""


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, str]:
    """Variables with which fetch_data waits in the middle of its work until there is a file GO_ON."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow/sitecustomize.py").write_text(SLOW, encoding="utf-8")
    return {"PYTHONPATH": str(tmp_path / "slow"), "GO_ON": str(tmp_path / "go_on")}


def start(folder: Path, *command: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**ENVIRONMENT, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@contextmanager
def held(dvc: subprocess.Popen[str], slow: dict[str, str]) -> Iterator[psutil.Process]:
    """The stage that DVC runs with the variables `slow`, for as long as the block lasts in the middle of its work."""
    until = time.monotonic() + 120
    while not (stages := stage_processes(dvc)):
        assert dvc.poll() is None and time.monotonic() < until, "no stage began"
        time.sleep(0.01)
    (stage,) = stages
    while not list(Path(stage.cwd()).glob("data/.raw.*.part")):
        assert dvc.poll() is None and time.monotonic() < until, "the stage wrote nothing"
        time.sleep(0.01)
    stage.suspend()
    try:
        yield stage
    finally:
        Path(slow["GO_ON"]).touch()
        stage.resume()


@pytest.fixture
def before(project: Path) -> dict[str, str]:
    """The hash of every output of the run that DVC knows."""
    return {path: digest(project / path) for path in outputs(project)}


def assert_undamaged(project: Path, before: dict[str, str]) -> None:
    """DVC finds nothing to do, and what it finds are the same bytes."""
    done = call(project, "dvc", "repro")
    assert done.returncode == 0 and "Running stage" not in done.stdout, done.stdout + done.stderr
    assert {path: digest(project / path) for path in before} == before
    assert call(project, "git", "status", "--short").stdout == ""
    assert not list(project.rglob("*.part"))


def test_a_second_repro_while_a_stage_runs_stops_and_says_who_is_at_work(
    project: Path, before: dict[str, str], slow: dict[str, str]
) -> None:
    with start(project, *FORCED, **slow) as dvc:
        with held(dvc, slow):
            for command in (["dvc", "repro"], ["dvc", "exp", "run"]):
                done = call(project, *command)
                assert done.returncode != 0 and f"(PID {dvc.pid}):" in done.stderr, done.stderr
                assert "is busy, it is being blocked by" in done.stderr and "Traceback" not in done.stderr
        said, _ = dvc.communicate(timeout=120)
    assert dvc.returncode == 0, said
    assert_undamaged(project, before)


def test_two_repros_at_the_same_moment_end_as_one(project: Path, before: dict[str, str]) -> None:
    with start(project, *FORCED) as one, start(project, *FORCED) as other:
        said = [dvc.communicate(timeout=300)[0] for dvc in (one, other)]
    failed = [text for dvc, text in zip((one, other), said, strict=True) if dvc.returncode]
    assert len(failed) < 2, said
    for text in failed:
        assert "Unable to acquire lock" in text or "is busy, it is being blocked by" in text
    assert not any("Traceback" in text for text in said)
    assert_undamaged(project, before)


def test_a_stage_by_hand_beside_the_one_that_dvc_runs_stops_with_one_line(
    project: Path, before: dict[str, str], slow: dict[str, str]
) -> None:
    with start(project, *FORCED, **slow) as dvc:
        with held(dvc, slow) as stage:
            done = call(project, sys.executable, "-m", "stages.fetch_data")
            assert done.returncode == 1 and done.stderr.count("\n") == 1
            assert done.stderr.startswith(f"error: data/raw: process {stage.pid} is making it at this moment; ")
        said, _ = dvc.communicate(timeout=120)
    assert dvc.returncode == 0, said
    assert_undamaged(project, before)


def test_a_push_while_a_stage_runs_pushes_what_is_there(
    project: Path, before: dict[str, str], slow: dict[str, str], tmp_path: Path
) -> None:
    assert call(project, "dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store")).returncode == 0
    with start(project, *FORCED, **slow) as dvc:
        with held(dvc, slow):
            done = call(project, "dvc", "push")
            assert done.returncode == 0 and "pushed" in done.stdout, done.stderr
        said, _ = dvc.communicate(timeout=120)
    assert dvc.returncode == 0, said
    assert_undamaged(project, before)
    assert "up to date" in call(project, "dvc", "push").stdout


def test_a_stage_whose_dvc_was_killed_and_the_next_repro_do_not_work_side_by_side(
    project: Path, before: dict[str, str], slow: dict[str, str]
) -> None:
    with start(project, *FORCED, **slow) as dvc, held(dvc, slow) as stage:
        dvc.send_signal(signal.SIGKILL)
        dvc.wait()
        done = call(project, *FORCED)
        assert done.returncode != 0 and f"data/raw: process {stage.pid} is making it" in done.stderr
    _, alive = psutil.wait_procs([stage], timeout=20)
    assert alive == []
    assert call(project, *FORCED).returncode == 0
    assert_undamaged(project, before)
