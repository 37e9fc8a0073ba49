"""Experiments on another machine: two clones that share a Git remote and a DVC remote, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import ENVIRONMENT, run, stages_run


@pytest.fixture(scope="module")
def laptop(tmp_path_factory: pytest.TempPathFactory, known: Path) -> Path:
    """The project with a finished run, committed and pushed to origin.git and store, which are beside it."""
    folder = Path(shutil.copytree(known, tmp_path_factory.mktemp("machines") / "laptop", symlinks=True))
    run(folder, "dvc", "remote", "add", "-q", "-d", "store", "../../store")  # relative to .dvc/config
    run(folder, "git", "commit", "-qam", "A remote")
    run(folder.parent, "git", "clone", "-q", "--bare", "laptop", "origin.git")
    run(folder, "git", "remote", "add", "origin", "../origin.git")
    run(folder, "dvc", "push", "-q")
    return folder


@pytest.fixture(scope="module")
def worker(laptop: Path) -> Path:
    """A clone on the other machine, with the data that it needs."""
    folder = laptop.parent / "worker"
    run(laptop.parent, "git", "clone", "-q", "origin.git", "worker")
    run(folder, "dvc", "pull", "-q")
    return folder


def start(folder: Path) -> None:
    """Start the queue's worker. It keeps standard output open as long as it lives, so nobody reads that here."""
    command = ["dvc", "queue", "start"]
    done = subprocess.run(command, check=False, cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 0


def queue(folder: Path) -> dict[str, str]:
    """Return name to status of what is in the queue."""
    words = [line.split() for line in run(folder, "dvc", "queue", "status").splitlines()[1:]]
    return {line[1]: line[-1] for line in words if len(line) > 3 and ":" not in line[0]}


def processes(folder: Path) -> list[psutil.Process]:
    """Return the processes of DVC's queue in this clone: its worker, and what that started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def runs(folder: Path, word: str) -> bool:
    """Whether a process of the queue has been called with this word."""
    for process in processes(folder):
        with suppress(psutil.Error):
            if word in process.cmdline():
                return True
    return False


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def wait_for(name: str, folder: Path) -> None:
    """Wait until the only queued experiment is done and the queue's worker has ended."""
    wait_until(lambda: runs(folder, "exec-run"))
    wait_until(lambda: not runs(folder, "exec-run"))
    run(folder, "dvc", "queue", "stop")  # else it would wait for more work for a while
    assert psutil.wait_procs(processes(folder), timeout=300)[1] == []
    assert queue(folder)[name] == "Success"


def shown(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return name to params and metrics of the experiments that `dvc exp show` knows."""
    states = json.loads(run(folder, "dvc", "exp", "show", "--json", "--force"))
    experiments = [one for state in states for one in state["experiments"] or [] if one["revs"]]
    found = {one["name"]: one["revs"][-1]["data"] for one in experiments}
    return {name: (data["params"]["params.yaml"]["data"], data["metrics"]) for name, data in found.items()}


def test_an_experiment_of_the_worker_is_shown_applied_and_not_run_again_on_the_laptop(
    laptop: Path, worker: Path
) -> None:
    run(worker, "dvc", "exp", "run", "--queue", "--name", "rank-2", "-S", "train.lora.r=2")
    # What is queued keeps its params: neither an edit nor a checkout disturbs it.
    (worker / "params.yaml").write_text("nothing", encoding="utf-8")
    start(worker)
    wait_for("rank-2", worker)
    run(worker, "git", "checkout", "-q", "params.yaml")
    assert sorted(stages_run(run(worker, "dvc", "queue", "logs", "rank-2"))) == ["evaluate", "infer@adapter", "train"]
    run(worker, "dvc", "exp", "push", "origin", "rank-2")

    run(laptop, "dvc", "exp", "pull", "origin", "rank-2")
    params, metrics = shown(laptop)["rank-2"]
    assert params["train"]["lora"]["r"] == 2 and metrics
    run(laptop, "dvc", "exp", "apply", "rank-2")
    assert json.loads((laptop / "models/adapter/adapter_config.json").read_text(encoding="utf-8"))["r"] == 2
    assert stages_run(run(laptop, "dvc", "repro")) == []


def test_after_a_worker_died_the_queue_continues_and_its_experiment_can_be_queued_again(worker: Path) -> None:
    def enqueue(name: str) -> None:
        setting = f"evaluate.resamples={name.removeprefix('resamples-')}"
        run(worker, "dvc", "exp", "run", "--queue", "--name", name, "-S", setting)

    for name in ("resamples-300", "resamples-400"):
        enqueue(name)
    start(worker)
    wait_until(lambda: runs(worker, "stages.evaluate"))
    while left := processes(worker):  # as when the machine is switched off
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left)
    by_status = {status: name for name, status in queue(worker).items()}
    died, waiting = by_status["Running"], by_status["Queued"]  # DVC cannot know yet

    start(worker)
    wait_for(waiting, worker)
    run(worker, "dvc", "queue", "kill", died)
    assert queue(worker)[died] == "Failed"
    run(worker, "dvc", "queue", "remove", died)
    enqueue(died)
    start(worker)
    wait_for(died, worker)
    params, metrics = shown(worker)[died]
    assert params["evaluate"]["resamples"] == int(died.removeprefix("resamples-")) and metrics
    assert run(worker, "git", "status", "--short") == ""
