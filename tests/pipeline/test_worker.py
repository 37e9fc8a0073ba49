"""Experiments on another machine: two clones that share a Git remote and a DVC remote, and nothing else."""

import json
import shutil
from pathlib import Path

from tests.conftest import run, stages_run


def test_an_experiment_of_a_worker_is_shown_and_applied_on_the_laptop_and_runs_nothing_there(
    known: Path, tmp_path: Path
) -> None:
    laptop, worker = Path(shutil.copytree(known, tmp_path / "laptop", symlinks=True)), tmp_path / "worker"
    run(laptop, "dvc", "remote", "add", "-q", "-d", "store", "../../store")  # relative to .dvc/config
    run(laptop, "git", "commit", "-qam", "A remote")
    run(tmp_path, "git", "clone", "-q", "--bare", "laptop", "origin.git")
    run(laptop, "git", "remote", "add", "origin", "../origin.git")
    run(laptop, "dvc", "push", "-q")

    run(tmp_path, "git", "clone", "-q", "origin.git", "worker")
    run(worker, "dvc", "pull", "-q")
    run(worker, "dvc", "exp", "run", "--queue", "--name", "rank-2", "-S", "train.lora.r=2")
    (worker / "params.yaml").write_text("nothing", encoding="utf-8")  # what is queued keeps its params
    run(worker, "dvc", "exp", "run", "--run-all")
    stages = stages_run(run(worker, "dvc", "queue", "logs", "rank-2"))
    assert sorted(stages) == ["evaluate", "general@adapter", "infer@adapter", "train"]
    run(worker, "dvc", "exp", "push", "origin", "rank-2")

    run(laptop, "dvc", "exp", "pull", "origin", "rank-2")
    states = json.loads(run(laptop, "dvc", "exp", "show", "--json", "--force"))
    (shown,) = [one["revs"][-1]["data"] for state in states for one in state["experiments"] or [] if one["revs"]]
    assert shown["params"]["params.yaml"]["data"]["train"]["lora"]["r"] == 2
    run(laptop, "dvc", "exp", "apply", "rank-2")
    assert json.loads((laptop / "models/adapter/adapter_config.json").read_text(encoding="utf-8"))["r"] == 2
    assert stages_run(run(laptop, "dvc", "repro")) == []
