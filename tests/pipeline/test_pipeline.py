"""Real DVC on a tiny run: what a change reruns, and what the metrics show. test_reruns.py has every kind of change."""

import json
import shutil
from pathlib import Path

import pytest

from howto.tools.cli import main
from tests.conftest import run, stages_run
from tests.support.in_process import run_here


def undo(clone: Path) -> None:
    """Take back what was changed since the commit."""
    run(clone, "git", "checkout", "-q", ".")
    run(clone, "dvc", "checkout", "-q")


@pytest.fixture(scope="module")
def clone(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with a finished tiny run. Each test takes back its changes."""
    return Path(shutil.copytree(known, tmp_path_factory.mktemp("project") / "clone", symlinks=True))


def test_a_second_repro_runs_no_stage_and_writes_no_file_that_git_sees_also_after_damage(clone: Path) -> None:
    assert stages_run(run(clone, "dvc", "repro")) == []
    assert run(clone, "git", "status", "--short") == ""
    assert {path.parent.name for path in clone.rglob(".gitignore")} == {".dvc", clone.name}  # none from DVC
    (clone / "data/predictions/base.jsonl").unlink()
    shutil.rmtree(clone / "models/adapter")
    (clone / "metrics/metrics.json").write_text("{}", encoding="utf-8")
    assert stages_run(run(clone, "dvc", "repro")) == []
    assert run(clone, "git", "status", "--short") == ""
    assert (clone / "models/adapter/adapter_model.safetensors").is_file()


def rouge(folder: Path) -> float:
    """ROUGE-L of the adapter's answers."""
    return float(json.loads((folder / "metrics/evaluation.json").read_text(encoding="utf-8"))["adapter"]["rougeL"])


def test_another_rank_and_learning_rate_rerun_training_and_what_follows_and_are_compared(
    clone: Path, tmp_path: Path
) -> None:
    slow = rouge(clone)
    changes = ["-n", "other", "-S", "train.lora.r=16", "-S", "profiles.smollm2.train.learning_rate=1e-5"]
    stages = stages_run(run(clone, "dvc", "exp", "run", *changes))
    assert sorted(stages) == ["evaluate", "general@adapter", "infer@adapter", "train"]
    other = rouge(clone)
    assert other != slow
    assert "1e-05" in (clone / "params.yaml").read_text(encoding="utf-8")  # PyYAML would read DVC's 1e-05 as a string
    (params,) = json.loads(run(clone, "dvc", "params", "diff", "--json")).values()
    assert params["train.lora.r"] == {"old": 8, "new": 16, "diff": 8}
    (metrics,) = json.loads(run(clone, "dvc", "metrics", "diff", "--json")).values()
    assert len(metrics) <= 10
    parameters = metrics["trainable_parameters"]
    assert parameters["new"] == 2 * parameters["old"] > 0
    undo(clone)

    done = run_here(main, clone, "compare", "other", "--json", str(tmp_path / "found.json"), "--rows", "2")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert (found["old"]["metrics"]["rougeL"], found["new"]["metrics"]["rougeL"]) == (other, slow)
    assert found["params"] == {"profiles.<profile>.train.learning_rate": [1e-5, 0.01], "train.lora.r": [16, 8]}
    assert "models/adapter" in found["hashes"] and "models/base" not in found["hashes"]
    assert "│ profiles.<profile>.train.learning_rate │ 1e-05 │ 0.01 │" in " ".join(done.stdout.split())
    assert "Largest gains:" in done.stdout or "Largest regressions:" in done.stdout
    assert run(clone, "git", "status", "--porcelain") == ""


def test_a_comment_in_code_reruns_the_stage_that_uses_it_to_the_same_bytes_and_nothing_after_it(clone: Path) -> None:
    name = "howto/data/split.py"
    with (clone / name).open("a", encoding="utf-8") as file:
        file.write("# A remark.\n")
    assert stages_run(run(clone, "dvc", "repro")) == ["prepare"]
    assert set(run(clone, "git", "status", "--short").split()) == {"M", name, "dvc.lock"}
    undo(clone)
