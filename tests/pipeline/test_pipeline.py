"""Real DVC on a tiny run: what is rerun after a change, and what is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.test_reruns import FETCH, INFER


def environment() -> dict[str, str]:
    """That of a shell in which .venv is active, and Git knows who commits."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    who = {f"GIT_{role}_{part}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    return {**os.environ, "PATH": path, "COLUMNS": "120", **who}


def run(folder: Path, *command: str) -> str:
    """The output of a command that succeeds."""
    done = subprocess.run(
        command, check=False, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", output)


def back(clone: Path) -> None:
    """Take back what was changed since the commit."""
    run(clone, "git", "checkout", "-q", ".")
    run(clone, "dvc", "checkout", "-q")


@pytest.fixture(scope="module")
def clone(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a finished tiny run, whose changes each test takes back."""
    return Path(shutil.copytree(known, tmp_path_factory.mktemp("project") / "clone", symlinks=True))


def test_a_second_repro_runs_no_stage(clone: Path) -> None:
    assert stages_run(run(clone, "dvc", "repro")) == []
    assert run(clone, "git", "status", "--short") == ""


def test_dvc_writes_no_gitignore_of_its_own(clone: Path) -> None:
    assert sorted(str(path.relative_to(clone)) for path in clone.rglob(".gitignore")) == [
        ".dvc/.gitignore",
        ".gitignore",
    ]


def test_a_comment_in_params_yaml_reruns_nothing(clone: Path) -> None:
    path = clone / "params.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text("# A remark.\n" + text.replace("# int; rank of the adapter", "# another remark"), encoding="utf-8")
    assert stages_run(run(clone, "dvc", "repro")) == []
    path.write_text(text, encoding="utf-8")


def test_another_rank_reruns_training_and_what_follows_and_shows_in_the_metrics(clone: Path) -> None:
    output = run(clone, "dvc", "exp", "run", "-S", "train.lora.r=16")
    assert sorted(stages_run(output)) == ["evaluate", "infer@adapter", "train"]
    difference = json.loads(run(clone, "dvc", "params", "diff", "--json"))
    assert difference["params.yaml"]["train.lora.r"] == {"old": 8, "new": 16, "diff": 8}
    changed = json.loads(run(clone, "dvc", "metrics", "diff", "--json"))
    assert list(changed) == ["metrics/metrics.json"] and len(changed["metrics/metrics.json"]) <= 10
    assert "adapter.rougeL" in changed["metrics/metrics.json"]
    parameters = changed["metrics/metrics.json"]["trainable_parameters"]
    assert parameters["new"] == 2 * parameters["old"] > 0
    back(clone)
    # back at the first rank everything is as it was, and the run-cache knows it
    assert stages_run(run(clone, "dvc", "repro")) == []


def test_what_is_changed_for_nothing_is_where_the_running_ends(clone: Path) -> None:
    assert stages_run(run(clone, "dvc", "exp", "run", "-S", "prepare.reject.max_characters=100000")) == ["prepare"]
    back(clone)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("howto/tools/export.py", ""),
        ("howto/evaluation/rouge.py", "evaluate"),
        ("howto/core/step_lists.py", f"{FETCH} prepare train {INFER} evaluate"),
    ],
)
def test_a_comment_in_a_file_reruns_the_stages_that_import_its_folder_and_they_make_the_same_bytes(
    clone: Path, name: str, stages: str
) -> None:
    with (clone / name).open("a", encoding="utf-8") as file:
        file.write("# A remark.\n")
    assert sorted(stages_run(run(clone, "dvc", "repro"))) == sorted(stages.split())
    assert set(run(clone, "git", "status", "--short").split()) <= {"M", name, "dvc.lock"}
    back(clone)


def test_outputs_that_were_damaged_or_removed_are_brought_back_and_nothing_runs(clone: Path) -> None:
    (clone / "data/predictions/base.jsonl").unlink()
    shutil.rmtree(clone / "models/adapter")
    (clone / "metrics/metrics.json").write_text("{}", encoding="utf-8")
    assert stages_run(run(clone, "dvc", "repro")) == []
    assert run(clone, "git", "status", "--short") == ""
    assert (clone / "models/adapter/adapter_model.safetensors").is_file()
    assert (clone / "data/predictions/base.jsonl").is_file()


def test_another_way_to_score_reruns_evaluate_alone(clone: Path) -> None:
    assert stages_run(run(clone, "dvc", "exp", "run", "-S", "evaluate.use_stemmer=false")) == ["evaluate"]
    back(clone)


def test_a_learning_rate_as_dvc_writes_it_is_understood(clone: Path) -> None:
    output = run(clone, "dvc", "exp", "run", "-S", "profiles.smollm2.train.learning_rate=1e-5")
    assert sorted(stages_run(output)) == ["evaluate", "infer@adapter", "train"]
    assert "1e-05" in (clone / "params.yaml").read_text(encoding="utf-8")
    back(clone)
