"""A `dvc repro` that is killed leaves no process and nothing half-made, and the next one ends with the same bytes.

benchmarks/killed_repro.py does it at random moments of a whole run.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.repro_trial import Aim, digest, end_of, left_over, send, stage_processes
from tests.conftest import ENVIRONMENT, call
from tests.support.in_process import edit_params

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def stage_of(dvc: subprocess.Popen[str]) -> psutil.Process:
    """The process of the stage that DVC runs, as soon as there is one."""
    until = time.monotonic() + 120
    while not (stages := stage_processes(dvc)):
        assert dvc.poll() is None and time.monotonic() < until, "no stage began"
    return stages[0]


@pytest.mark.parametrize(("number", "target"), [("SIGKILL", "dvc"), ("SIGTERM", "group"), ("SIGINT", "stage")])
def test_what_a_killed_run_was_making_is_made_again_to_the_same_bytes(project: Path, number: str, target: str) -> None:
    before = digest(project / "data/prepared")
    command = ["dvc", "repro", "--single-item", "prepare"]
    hit = False
    for _ in range(5):  # the files are there for so short a time that a busy machine may miss it
        shutil.rmtree(project / ".dvc/cache")  # else DVC has no need to run the stage
        with start(project, *command) as dvc:
            stage = stage_of(dvc)
            while not (hit := bool(list(project.glob("data/.prepared.*.part")))) and dvc.poll() is None:
                pass
            if hit:
                send(dvc, [stage], Aim("prepare", number, target, 0))
                assert end_of(dvc, [stage], 20) == [] and dvc.returncode != 0
                break
    assert hit, "the stage was never seen to write"
    assert digest(project / "data/prepared") in ("", before)
    done = call(project, *command)
    assert done.returncode == 0 and "Running stage 'prepare'" in done.stdout, done.stderr
    assert digest(project / "data/prepared") == before and left_over(project) == []
    assert call(project, "git", "status", "--short").stdout == ""  # dvc.lock and metrics/ are the same


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_whose_dvc_dies_before_it_could_look_does_not_go_on(project: Path, number: signal.Signals) -> None:
    edit_params(project, "      epochs: 1 ", "      epochs: 5000 ")
    with start(project, "dvc", "repro", "--single-item", "train") as dvc:
        stage = stage_of(dvc)
        dvc.send_signal(number)
        dvc.wait()
        assert end_of(dvc, [stage], 60) == []
    assert not (project / "models/adapter").exists() and left_over(project) == []
