"""Inference that is killed leaves nothing that looks finished, and goes on with the answers that it has."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from howto.core.schema import Prediction, Row, read_rows, write_rows
from tests.conftest import ROOT, run_stage
from tests.support.in_process import edit_params

STAGE = ["stages.infer", "--stage", "adapter"]
PREDICTIONS = Path("data/predictions/adapter.jsonl")
COPIES = 3  # of the training rows, as rows of the test

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


@pytest.fixture(scope="module")
def whole(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A longer test, answered a few rows at once and by a run that nothing disturbed. Not to be changed."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("whole") / "folder"))
    rows = read_rows(folder / "data/prepared/train.jsonl", Row)
    more = [row.model_copy(update={"id": f"{row.id}-{number}"}) for number in range(COPIES) for row in rows]
    write_rows(folder / "data/prepared/test.jsonl", more)
    edit_params(folder, "batch_size: 128 ", "batch_size: 4 ")
    done = run_stage(folder, *STAGE)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(folder / PREDICTIONS, Prediction)) == len(more)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """The same without the answers."""
    copy = Path(shutil.copytree(whole, tmp_path / "killed"))
    (copy / PREDICTIONS).unlink()
    return copy


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *STAGE, *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def answers(folder: Path) -> int:
    """How many answers are in the journals of `folder`."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("models/checkpoints/*/answers*.jsonl"))


def wait_for_answers(folder: Path, process: subprocess.Popen[str], count: int) -> None:
    """Wait until there are `count` answers in the journal of the stage that `process` runs in `folder`."""
    until = time.monotonic() + 120
    while answers(folder) < count:
        assert process.poll() is None and time.monotonic() < until, f"there never were {count} answers"
        time.sleep(0.005)


def test_a_run_killed_at_random_moments_ends_with_the_bytes_of_one_that_was_not(whole: Path, folder: Path) -> None:
    chance = random.Random(1)
    there = 0
    for _ in range(3):
        with start(folder) as process:
            wait_for_answers(folder, process, there + chance.randint(1, 60))
            process.kill()
        assert not (folder / PREDICTIONS).exists()
        assert answers(folder) > there  # each went on from where the last one was
        there = answers(folder)
    (path,) = folder.glob("models/checkpoints/*/answers.jsonl")
    torn = path.read_bytes()[:-9]
    path.write_bytes(torn)
    with start(folder) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and errors == ""
    assert (folder / PREDICTIONS).read_bytes() == (whole / PREDICTIONS).read_bytes()
    assert not list((folder / "models/checkpoints").glob("*")) and not list(folder.rglob("*.part"))


def test_answers_that_are_in_the_journal_are_taken_up_and_those_of_other_params_never(
    whole: Path, folder: Path
) -> None:
    with start(folder) as process:
        wait_for_answers(folder, process, 20)
        process.kill()
    # An answer that no model gave shows where it comes from.
    (path,) = folder.glob("models/checkpoints/*/answers.jsonl")
    first, *others = path.read_bytes().splitlines(keepends=True)
    marked = Prediction.model_validate_json(first).model_copy(update={"text": "from the journal"})
    path.write_bytes(marked.model_dump_json().encode() + b"\n" + b"".join(others))
    edit_params(folder, "max_new_tokens: 48 ", "max_new_tokens: 12 ")
    done = run_stage(folder, *STAGE)
    assert done.returncode == 0, done.stderr
    predictions = read_rows(folder / PREDICTIONS, Prediction)
    assert len(predictions) == len(read_rows(whole / PREDICTIONS, Prediction))
    assert not any(prediction.text == marked.text for prediction in predictions)
    assert max(prediction.new_tokens for prediction in predictions) == 12
    assert path.exists()  # it is the other run's, which may yet go on
    edit_params(folder, "max_new_tokens: 12 ", "max_new_tokens: 48 ")
    assert run_stage(folder, *STAGE).returncode == 0
    predictions = read_rows(folder / PREDICTIONS, Prediction)
    assert [one.id for one in predictions if one.text == marked.text] == [marked.id]
    assert not path.exists()


def test_params_that_are_edited_while_it_runs_are_an_error_at_its_end_and_no_answers_are_kept(folder: Path) -> None:
    with start(folder) as process:
        wait_for_answers(folder, process, 1)
        edit_params(folder, "max_new_tokens: 48 ", "max_new_tokens: 12 ")
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors == (
        "error: params.yaml (infer.max_new_tokens): changed while the stage ran. Nothing was kept. Run it again.\n"
    )
    assert not (folder / PREDICTIONS).exists() and not list(folder.rglob("*.part"))


def test_a_run_of_three_processes_that_is_killed_ends_with_two_and_with_the_bytes_of_one(
    whole: Path, folder: Path
) -> None:
    with start(folder, "--processes", "3") as first:
        wait_for_answers(folder, first, 60)
        others = psutil.Process(first.pid).children(recursive=True)
        first.kill()
    assert len(others) >= 3
    _, alive = psutil.wait_procs(others, timeout=30)
    assert alive == []
    assert len(list(folder.glob("models/checkpoints/*/answers*.jsonl"))) == 3
    there = answers(folder)
    assert there < len(read_rows(whole / PREDICTIONS, Prediction)) and not (folder / PREDICTIONS).exists()
    # An answer that no model gave shows that the third process's are taken up too.
    (path,) = folder.glob("models/checkpoints/*/answers-2.jsonl")
    marked = Prediction.model_validate_json(path.read_bytes().splitlines()[0])
    path.write_bytes(marked.model_copy(update={"text": "from the journal"}).model_dump_json().encode() + b"\n")
    done = run_stage(folder, *STAGE, "--processes", "2")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    wanted = [
        one.model_copy(update={"text": "from the journal"}) if one.id == marked.id else one
        for one in read_rows(whole / PREDICTIONS, Prediction)
    ]
    assert read_rows(folder / PREDICTIONS, Prediction) == wanted
    assert not list((folder / "models/checkpoints").glob("*"))
