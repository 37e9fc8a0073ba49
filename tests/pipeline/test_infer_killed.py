"""Inference that is killed leaves nothing that looks finished, and resumes with the answers that it has."""

import shutil
import sys
from pathlib import Path

import psutil
import pytest

from howto.core.schema import Prediction, Row, read_rows, write_rows
from tests.conftest import run_stage
from tests.support.in_process import edit_params
from tests.support.processes import start_stage, wait_until

STAGE = ["stages.infer", "--stage", "adapter"]
PREDICTIONS = Path("data/predictions/adapter.jsonl")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


@pytest.fixture(scope="module")
def undisturbed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that answers the training rows, a few at a time. Not to be changed."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("undisturbed") / "folder"))
    write_rows(folder / "data/prepared/test.jsonl", read_rows(folder / "data/prepared/train.jsonl", Row))
    edit_params(folder, "batch_size: 128 ", "batch_size: 4 ")
    assert run_stage(folder, *STAGE).returncode == 0
    return folder


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """The same without the answers."""
    copy = Path(shutil.copytree(undisturbed, tmp_path / "killed"))
    (copy / PREDICTIONS).unlink()
    return copy


def journals(folder: Path) -> list[Path]:
    """The answers so far, one file for each process."""
    return sorted(folder.glob("models/checkpoints/*/answers*.jsonl"))


def answers(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in journals(folder))


def kill_after(count: int, folder: Path, *arguments: str) -> list[psutil.Process]:
    """Run the stage until there are `count` answers, and kill it; return the processes that it had started."""
    with start_stage(folder, *STAGE, *arguments) as process:
        wait_until(lambda: answers(folder) >= count, process)
        others: list[psutil.Process] = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert not (folder / PREDICTIONS).exists()
    return others


def mark_first_answer(journal: Path) -> str:
    """Change the text of the first answer, to show where a later run has it from; return the id of its row."""
    first, *others = journal.read_bytes().splitlines(keepends=True)
    answer = Prediction.model_validate_json(first).model_copy(update={"text": "from the journal"})
    journal.write_bytes(answer.model_dump_json().encode() + b"\n" + b"".join(others))
    return answer.id


def assert_resumed(folder: Path, undisturbed: Path, row: str) -> None:
    """Check that the answer to `row` is the marked one, and that all others are those of an undisturbed run."""
    found, expected = (read_rows(one / PREDICTIONS, Prediction) for one in (folder, undisturbed))
    assert [one.id for one in found if one.text == "from the journal"] == [row]
    assert [one for one in found if one.id != row] == [one for one in expected if one.id != row]
    assert not list((folder / "models/checkpoints").glob("*")) and not list(folder.rglob("*.part"))


def test_a_killed_run_resumes_with_its_own_answers_and_never_with_those_of_other_params(
    undisturbed: Path, folder: Path
) -> None:
    kill_after(5, folder)
    (journal,) = journals(folder)
    row = mark_first_answer(journal)

    edit_params(folder, "max_new_tokens: 48 ", "max_new_tokens: 4 ")
    assert run_stage(folder, *STAGE).returncode == 0
    assert max(one.new_tokens for one in read_rows(folder / PREDICTIONS, Prediction)) == 4  # so none is marked
    assert journal.exists()  # its run may still be resumed
    (folder / PREDICTIONS).unlink()

    edit_params(folder, "max_new_tokens: 4 ", "max_new_tokens: 48 ")
    kill_after(30, folder)
    journal.write_bytes(journal.read_bytes()[:-9])  # as if it had been killed in the middle of a write
    assert run_stage(folder, *STAGE).returncode == 0
    assert_resumed(folder, undisturbed, row)


def test_a_run_of_two_processes_that_is_killed_leaves_none_and_resumes_with_one(
    undisturbed: Path, folder: Path
) -> None:
    others = kill_after(20, folder, "--processes", "2")
    assert len(others) >= 2
    assert psutil.wait_procs(others, timeout=30)[1] == []
    assert answers(folder) < len(read_rows(undisturbed / PREDICTIONS, Prediction))
    row = mark_first_answer(journals(folder)[1])
    assert run_stage(folder, *STAGE).returncode == 0
    assert_resumed(folder, undisturbed, row)
