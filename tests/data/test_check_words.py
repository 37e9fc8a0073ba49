"""`prepare` checks whether `evaluate` will see the words of the test references. That changes no output."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.in_process import Done, edit_params, run_stage_here
from tests.support.raw_files import Raw, jsonl, words

OUTPUTS = [f"data/prepared/{name}.jsonl" for name in ("train", "validation", "test", "rejected")]


def rows(response: str) -> list[Raw]:
    """300 rows with this response, of which `prepare` takes 120 for the test."""
    names = [words(number, 6) for number in range(300)]
    return [
        {"instruction": f"{name}?", "context": "", "response": response.format(name), "category": "c"} for name in names
    ]


def prepared(folder: Path, response: str, tokenizer: str = "rouge_score") -> tuple[Done, list[bytes]]:
    """Run the stage as DVC does; return what it prints and what it writes."""
    folder.mkdir()
    shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
    edit_params(folder, "tokenizer: rouge_score ", f"tokenizer: {tokenizer} ")
    (folder / "data/raw/rows").mkdir(parents=True)
    (folder / "data/raw/rows/made.jsonl").write_bytes(jsonl(rows(response)))
    done = run_stage_here("prepare", folder)
    return done, [(folder / name).read_bytes() for name in OUTPUTS]


@pytest.mark.parametrize(
    ("response", "status", "message"),
    [
        ("1. Открыть окно.\n2. Ждать.", 1, "error: params.yaml: evaluate.tokenizer: rouge_score"),
        ("1. Ouvrez {}.\n2. Fermez le café.", 0, "prepare: warning: 10.0% of the words in the references"),
        ("1. Open {}.\n2. Close it.", 0, ""),
        ("...", 1, "error: data/prepared/test.jsonl: 120 of 120 references have no word"),
    ],
)
def test_test_references_that_cannot_be_scored_stop_the_stage_or_are_a_warning_and_the_outputs_are_the_same(
    tmp_path: Path, response: str, status: int, message: str
) -> None:
    done, files = prepared(tmp_path / "a", response)
    assert done.returncode == status and done.stderr.startswith(message)
    assert done.stderr.count("\n") == (1 if message else 0)
    again, same_files = prepared(tmp_path / "b", response, "unicode")
    assert files == same_files and files[2]
    assert again.returncode == (1 if response == "..." else 0)
