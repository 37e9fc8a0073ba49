"""Checkpoints are whole or absent, and belong to one run and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from howto.core.errors import UserError
from howto.modeling.fingerprint import Fingerprint
from howto.params import read_params
from howto.training.checkpoints import Checkpoints
from howto.training.config import Train
from tests.conftest import ROOT


def save(folder: Path, key: str, *steps: int) -> None:
    checkpoints = Checkpoints(folder, key)
    for step in steps:
        checkpoints.save(step, {"weight": torch.full((2,), float(step))}, {"loss": 0.1 + step})


def test_the_newest_comes_back_as_it_was_saved_and_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path, "run", 3, 9, 12)
    found = Checkpoints(tmp_path, "run").newest()
    assert found is not None
    assert found[0]["weight"].tolist() == [12.0, 12.0] and found[1] == {"loss": 0.1 + 12}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["00000009", "00000012"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_one_that_is_damaged_is_passed_over(tmp_path: Path, name: str) -> None:
    save(tmp_path, "run", 3, 9)
    path = tmp_path / "run/00000009" / name
    path.write_bytes(path.read_bytes()[:-5])
    found = Checkpoints(tmp_path, "run").newest()
    assert found is not None and found[1] == {"loss": 0.1 + 3}


def test_one_that_was_not_finished_is_none(tmp_path: Path) -> None:
    save(tmp_path, "run", 3)
    (tmp_path / "run/00000003").rename(tmp_path / "run/.00000003.1234abcd.part")
    assert Checkpoints(tmp_path, "run").newest() is None
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_does_not_find_those_of_another_and_leaves_the_latest_of_them(tmp_path: Path) -> None:
    for key in ("a", "b", "c", "d"):
        save(tmp_path, key, 1)
    assert Checkpoints(tmp_path, "e").newest() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d"]


def test_none_are_left_of_a_run_that_ended(tmp_path: Path) -> None:
    save(tmp_path, "run", 1, 2)
    Checkpoints(tmp_path, "run").remove()
    assert not (tmp_path / "run").exists()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    Path("rows.jsonl").write_text("1\n", encoding="utf-8")
    Path("base").mkdir()
    Path("base/weights").write_text("w", encoding="utf-8")
    return tmp_path


def inputs() -> Fingerprint:
    return Fingerprint([Path("rows.jsonl"), Path("base")], read_params(), [Train], ["howto/training"])


EDITS: dict[str, Callable[[], object]] = {
    "rows.jsonl": lambda: Path("rows.jsonl").write_text("2\n", encoding="utf-8"),
    "base/weights": lambda: Path("base/weights").unlink(),
    "base/more": lambda: Path("base/more").write_text("", encoding="utf-8"),
    "params.yaml (train.lora.r)": lambda: edit("    r: 8 ", "    r: 4 "),
}


def edit(old: str, new: str) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("what", EDITS)
def test_what_is_edited_while_a_stage_runs_is_named_and_gives_another_key(folder: Path, what: str) -> None:
    before = inputs()
    before.check()
    EDITS[what]()
    with pytest.raises(UserError) as stop:
        before.check()
    assert str(stop.value) == f"{what}: changed while the stage ran; nothing was kept, run it again"
    assert inputs().key() != before.key()


def test_what_is_touched_or_is_another_stages_is_no_change(folder: Path) -> None:
    before = inputs()
    Path("rows.jsonl").write_text("1\n", encoding="utf-8")
    edit("  max_new_tokens: 256", "  max_new_tokens: 128")
    before.check()
    assert inputs().key() == before.key() == inputs().key()
    assert before.key(torch="1") != before.key(torch="2")


def test_the_code_that_runs_is_part_of_the_key() -> None:
    fingerprint = Fingerprint([], read_params(ROOT / "params.yaml"), [Train], ["howto/core", "stages/train.py"])
    assert {"howto/core/config.py", "stages/train.py"} <= fingerprint.parts().keys()
    assert "howto/evaluation/config.py" not in fingerprint.parts()
