"""Experiments on another machine: two clones that share a Git remote and a DVC remote, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import copy_code
from tests.pipeline.test_pipeline import environment, run, stages_run

OUTPUTS = ("models/base", "models/adapter", "data", "metrics", "log")


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """The project with a finished run, committed and pushed: origin.git and store lie beside it."""
    folder = tmp_path_factory.mktemp("machines") / "laptop"
    copy_code(folder)
    for name in OUTPUTS:
        shutil.copytree(finished / name, folder / name, dirs_exist_ok=True)
    shutil.copyfile(finished / "params.yaml", folder / "params.yaml")
    run(folder.parent, "git", "init", "-q", "--bare", "-b", "main", "origin.git")
    run(folder, "git", "init", "-q", "-b", "main")
    run(folder, "git", "remote", "add", "origin", "../origin.git")
    run(folder, "dvc", "remote", "add", "-q", "-d", "store", "../../store")  # as seen from .dvc/config
    run(folder, "dvc", "commit", "-q", "--force")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "run")
    run(folder, "git", "push", "-q", "-u", "origin", "main")
    run(folder, "dvc", "push", "-q")
    return folder


@pytest.fixture(scope="module")
def worker(laptop: Path) -> Path:
    """A clone on the other machine, with what it needs pulled."""
    folder = laptop.parent / "worker"
    run(laptop.parent, "git", "clone", "-q", "origin.git", "worker")
    run(folder, "dvc", "pull", "-q")
    assert stages_run(run(folder, "dvc", "repro")) == []
    assert run(folder, "git", "status", "--short") == ""
    return folder


def start(folder: Path) -> None:
    """Start the queue's worker. It keeps standard output open for as long as it lives: so nobody reads that here."""
    done = subprocess.run(
        ["dvc", "queue", "start"], check=False, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, timeout=300
    )
    assert done.returncode == 0


def queue(folder: Path) -> dict[str, str]:
    """Name to status of what is in the queue."""
    lines = run(folder, "dvc", "queue", "status").splitlines()
    return {
        line.split()[1]: line.split()[-1] for line in lines[1:] if len(line.split()) > 3 and ":" not in line.split()[0]
    }


def ours(folder: Path) -> list[psutil.Process]:
    """The processes of DVC's queue in this clone: its worker, and what that started."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def commands(folder: Path) -> list[list[str]]:
    """What they were called with."""
    found = []
    for process in ours(folder):
        with suppress(psutil.Error):
            found.append(process.cmdline())
    return found


def wait_for_the_end(folder: Path, dead: str = "") -> None:
    """Wait until the queue is empty but for one of which DVC does not know that it is dead, and its worker is gone."""
    until = time.monotonic() + 900
    while any("exec-run" in command for command in commands(folder)) or (
        {"Queued", "Running"} & {status for name, status in queue(folder).items() if name != dead}
    ):
        assert time.monotonic() < until, f"still at work: {queue(folder)}"
        time.sleep(1)
    run(folder, "dvc", "queue", "stop")  # by itself it would wait for more to do for a while
    _, alive = psutil.wait_procs(ours(folder), timeout=900)
    assert not alive, f"still at work: {queue(folder)}"


def shown(folder: Path) -> dict[str, dict[str, Any]]:
    """Name to data of the experiments that `dvc exp show` knows."""
    states = json.loads(run(folder, "dvc", "exp", "show", "--json", "--force"))
    return {
        exp["name"]: exp["revs"][-1]["data"] for state in states for exp in state["experiments"] or [] if exp["revs"]
    }


def trainable_parameters(experiment: dict[str, Any]) -> int:
    return int(experiment["metrics"]["metrics/metrics.json"]["data"]["trainable_parameters"])


def parameters_per_rank(folder: Path) -> float:
    """Those of the committed run, whose rank is 8."""
    return float(json.loads(run(folder, "git", "show", "HEAD:metrics/metrics.json"))["trainable_parameters"]) / 8


def test_an_experiment_of_the_worker_is_shown_applied_and_not_run_again_on_the_laptop(
    laptop: Path, worker: Path
) -> None:
    run(worker, "dvc", "exp", "run", "--queue", "--name", "rank-2", "-S", "train.lora.r=2")
    # what is queued is what stood there then: neither an edit nor a checkout disturbs it
    (worker / "params.yaml").write_text("nothing", encoding="utf-8")
    start(worker)
    wait_for_the_end(worker)
    run(worker, "git", "checkout", "-q", "params.yaml")
    log = run(worker, "dvc", "queue", "logs", "rank-2")
    assert sorted(stages_run(log)) == ["evaluate", "infer@adapter", "train"]
    run(worker, "dvc", "exp", "push", "origin", "rank-2")

    run(laptop, "dvc", "exp", "pull", "origin", "rank-2")
    there, here = shown(worker)["rank-2"], shown(laptop)["rank-2"]
    assert here["params"] == there["params"] and here["metrics"] == there["metrics"]
    assert here["params"]["params.yaml"]["data"]["train"]["lora"]["r"] == 2
    assert trainable_parameters(here) == 2 * parameters_per_rank(laptop)

    run(laptop, "dvc", "exp", "apply", "rank-2")
    assert json.loads((laptop / "models/adapter/adapter_config.json").read_text(encoding="utf-8"))["r"] == 2
    assert stages_run(run(laptop, "dvc", "repro")) == []
    run(laptop, "git", "checkout", "-q", ".")
    run(laptop, "dvc", "checkout", "-q")


def test_a_worker_that_died_goes_on_with_the_queue_and_what_it_died_on_is_queued_again(worker: Path) -> None:
    for rank in (4, 16):
        run(worker, "dvc", "exp", "run", "--queue", "--name", f"rank-{rank}", "-S", f"train.lora.r={rank}")
    start(worker)
    until = time.monotonic() + 600
    while not any("stages.train" in command for command in commands(worker)):
        assert time.monotonic() < until, "training never began"
        time.sleep(0.02)
    while left := ours(worker):  # as when the machine is switched off
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left)
    by_status = {status: name for name, status in queue(worker).items()}
    died, waiting = by_status["Running"], by_status["Queued"]  # DVC cannot know yet

    start(worker)
    wait_for_the_end(worker, died)
    run(worker, "dvc", "queue", "kill", died)
    assert queue(worker)[died] == "Failed" and queue(worker)[waiting] == "Success"
    run(worker, "dvc", "queue", "remove", died)
    again = died.removeprefix("rank-")
    run(worker, "dvc", "exp", "run", "--queue", "--name", died, "-S", f"train.lora.r={again}")
    start(worker)
    wait_for_the_end(worker)
    found = shown(worker)
    assert trainable_parameters(found[died]) == int(again) * parameters_per_rank(worker)
    assert run(worker, "git", "status", "--short") == ""
