"""Two runs at once in one folder: one of them waits or stops with a line that says why, and nothing is damaged."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks.kills import digest, outputs, send, stage_processes
from tests.conftest import call, run, stages_run
from tests.support.processes import start, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")

FORCED = ["dvc", "repro", "--force", "--single-item", "fetch_data"]
SLOW = """
import os, shutil, sys, time
if sys.orig_argv[-1] == "stages.fetch_data":
    copyfile = shutil.copyfile
    def wait_and_copy(*arguments):
        while not os.path.exists(os.environ["CONTINUE"]):
            time.sleep(0.01)
        return copyfile(*arguments)
    shutil.copyfile = wait_and_copy
"""


@contextmanager
def held(project: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Yield DVC and its stage, which waits in the middle of its work until the block ends."""
    (folder / "sitecustomize.py").write_text(SLOW, encoding="utf-8")
    with start(project, *FORCED, PYTHONPATH=str(folder), CONTINUE=str(folder / "continue")) as dvc:
        (stage,) = wait_until(lambda: stage_processes(dvc), dvc)
        wait_until(lambda: list(project.glob("data/.raw.*.part")), dvc)
        stage.suspend()
        try:
            yield dvc, stage
        finally:
            (folder / "continue").touch()
            stage.resume()
        _, errors = dvc.communicate(timeout=120)
        assert dvc.returncode in (0, -9), errors


@pytest.fixture
def before(project: Path) -> dict[str, str]:
    """The hash of every output of the run that DVC knows."""
    return {path: digest(project / path) for paths in outputs(project).values() for path in paths}


def assert_undamaged(project: Path, before: dict[str, str]) -> None:
    """Check that DVC finds nothing to do, and that every output has the same bytes."""
    assert stages_run(run(project, "dvc", "repro")) == []
    assert {path: digest(project / path) for path in before} == before
    assert run(project, "git", "status", "--short") == ""
    assert not list(project.rglob("*.part"))


def test_while_a_stage_runs_another_repro_and_the_stage_by_hand_stop_with_the_reason(
    project: Path, before: dict[str, str], tmp_path: Path
) -> None:
    with held(project, tmp_path) as (dvc, stage):
        again = call(project, "dvc", "repro")
        assert again.returncode != 0 and "Traceback" not in again.stderr
        assert f"is busy, it is being blocked by:\n  (PID {dvc.pid}):" in again.stderr
        by_hand = call(project, sys.executable, "-m", "stages.fetch_data")
        assert by_hand.returncode == 1 and by_hand.stderr.count("\n") == 1
        assert by_hand.stderr.startswith("error: data/raw: ") and str(stage.pid) in by_hand.stderr
    assert_undamaged(project, before)


def test_the_next_repro_does_not_run_a_stage_beside_the_one_whose_dvc_was_killed(
    project: Path, before: dict[str, str], tmp_path: Path
) -> None:
    with held(project, tmp_path) as (dvc, stage):
        send(dvc, "SIGKILL", "dvc")
        dvc.wait()
        done = call(project, *FORCED)
        assert done.returncode != 0 and "error: data/raw: " in done.stderr and str(stage.pid) in done.stderr
    assert psutil.wait_procs([stage], timeout=20)[1] == []
    run(project, *FORCED)
    assert_undamaged(project, before)
