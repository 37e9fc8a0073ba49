"""A training that is killed or stopped leaves nothing that looks finished, and resumes to the same bytes."""

import importlib
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import digest
from howto.modeling import loading
from tests.conftest import ROOT, run, run_stage
from tests.support.in_process import edit_params, run_here
from tests.support.processes import newest_checkpoint, resumed, start_stage, wait_until

FILES = tuple(
    f"{folder}/{name}"
    for folder, names in {
        "models/adapter": ("adapter_model.safetensors",),
        "metrics": ("train.json", "train_loss.csv", "validation_loss.csv", "validation_rougeL.csv"),
    }.items()
    for name in names
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


def hashes(folder: Path) -> list[str]:
    return [digest(folder / name) for name in FILES]


@pytest.fixture(scope="module")
def killed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of some seconds that was killed after its first checkpoint. Not to be changed."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("killed") / "folder"))
    edit_params(folder, "      epochs: 1 ", "      epochs: 15 ")
    edit_params(folder, "validation_answers: null ", "validation_answers: 3 ")
    shutil.rmtree(folder / "models/adapter")
    (folder / "metrics/train.json").unlink()
    with start_stage(folder, "stages.train") as process:
        wait_until(lambda: newest_checkpoint(folder), process)
        process.kill()
    return folder


@pytest.fixture
def folder(killed: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(killed, tmp_path / "folder"))


def test_a_run_that_is_killed_and_stopped_by_ctrl_c_ends_with_the_bytes_of_one_that_was_not(
    folder: Path, tmp_path: Path
) -> None:
    undisturbed = Path(shutil.copytree(folder, tmp_path / "undisturbed"))
    shutil.rmtree(undisturbed / "models/checkpoints")
    assert not (folder / "models/adapter").exists() and not (folder / "metrics/train.json").exists()
    first = newest_checkpoint(folder)
    with start_stage(folder, "stages.train") as process:
        wait_until(lambda: newest_checkpoint(folder) > first, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("error: stopped by the keyboard") and "Traceback" not in errors
    assert not (folder / "models/adapter").exists() and not list(folder.rglob("*.part"))
    for one in (folder, undisturbed):
        assert run_stage(one, "stages.train").returncode == 0
    assert resumed(folder) and not resumed(undisturbed)
    assert hashes(folder) == hashes(undisturbed)
    assert not list((folder / "models/checkpoints").glob("*")) and not list(folder.rglob("*.part"))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores can be chosen on Linux alone")
def test_a_run_with_other_params_never_resumes_and_its_bytes_are_the_same_on_one_core(
    folder: Path, finished: Path
) -> None:
    edit_params(folder, "      epochs: 15 ", "      epochs: 1 ")  # as in `finished`
    edit_params(folder, "validation_answers: 3 ", "validation_answers: null ")
    core = str(min(os.sched_getaffinity(0)))
    run(folder, "env", f"PYTHONPATH={ROOT}", "taskset", "-c", core, "python", "-m", "stages.train")
    assert not resumed(folder)
    assert hashes(folder) == hashes(finished)


@pytest.mark.parametrize(
    ("stage", "arguments", "output", "loader"),
    [
        ("train", [], "models/adapter", "howto.modeling.loading"),
        ("infer", ["--stage", "base"], "data/predictions/base.jsonl", "howto.inference.generator"),
    ],
)
def test_params_that_are_edited_while_a_stage_runs_are_an_error_at_its_end(
    stage: str, arguments: list[str], output: str, loader: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_base = loading.load_base

    def load_and_edit(*arguments: Any) -> Any:
        edit_params(workplace, "  threads: 1 ", "  threads: 2 ")
        return load_base(*arguments)

    monkeypatch.setattr(f"{loader}.load_base", load_and_edit)
    before = digest(workplace / output)
    done = run_here(importlib.import_module(f"stages.{stage}").main, workplace, *arguments)
    assert done.returncode == 1 and "params.yaml (machine.threads)" in done.stderr
    assert digest(workplace / output) == before
