"""A `dvc repro` that is killed leaves no process and nothing half-made, and the next one makes the same bytes.

benchmarks/kills.py does this at random moments of all stages.
"""

import shutil
import sys
from pathlib import Path

import pytest

from benchmarks.kills import digest, end_of, left_over, send, stage_processes
from tests.conftest import call, run
from tests.support.in_process import edit_params
from tests.support.processes import newest_checkpoint, start, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


@pytest.mark.parametrize(("signal", "target"), [("SIGKILL", "dvc"), ("SIGTERM", "group"), ("SIGINT", "stage")])
def test_the_next_repro_runs_a_killed_stage_again_to_the_same_bytes(project: Path, signal: str, target: str) -> None:
    before = digest(project / "data/prepared")
    command = ["dvc", "repro", "--single-item", "prepare"]
    hit = False
    for _ in range(5):  # the temporary folder exists for so short a time that a busy machine can miss it
        shutil.rmtree(project / ".dvc/cache")  # else DVC takes the outputs from there
        with start(project, *command) as dvc:
            family = wait_until(lambda dvc=dvc: stage_processes(dvc), dvc)  # type: ignore[misc]
            while not (hit := bool(list(project.glob("data/.prepared.*.part")))) and dvc.poll() is None:
                pass
            if hit:
                send(dvc, signal, target)
                assert end_of(dvc, family, 20) == [] and dvc.returncode != 0
                break
    assert hit, "the stage never wrote"
    assert digest(project / "data/prepared") in ("", before)
    done = call(project, *command)
    assert done.returncode == 0 and "Running stage 'prepare'" in done.stdout, done.stderr
    assert digest(project / "data/prepared") == before and left_over(project) == []
    assert run(project, "git", "status", "--short") == ""  # dvc.lock and metrics/ are the same


@pytest.mark.parametrize(("signal", "trains"), [("SIGKILL", False), ("SIGTERM", True)])
def test_a_stage_ends_when_its_dvc_dies(project: Path, signal: str, trains: bool) -> None:
    """`trains`: after a checkpoint. Else at once, before the stage has looked for the process of its DVC."""
    edit_params(project, "      epochs: 1 ", "      epochs: 5000 ")
    with start(project, "dvc", "repro", "--single-item", "train") as dvc:
        family = wait_until(lambda: stage_processes(dvc), dvc)
        if trains:
            wait_until(lambda: newest_checkpoint(project), dvc)
        send(dvc, signal, "dvc")
        assert end_of(dvc, family, 60) == []
    assert not (project / "models/adapter").exists() and not list(project.rglob("*.part"))
