"""Checkpoints are complete or absent, and belong to one run."""

from pathlib import Path

import pytest
import torch

from howto.core.errors import UserError
from howto.training.checkpoints import Checkpoints


def save(folder: Path, key: str, *steps: int) -> None:
    checkpoints = Checkpoints(folder, key)
    for step in steps:
        checkpoints.save(step, {"weight": torch.full((2,), float(step))}, {"loss": 0.1 + step})


def test_two_are_kept_and_the_newest_complete_one_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    save(tmp_path, "run", 3, 9, 12, 15)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["00000012", "00000015"]
    (tmp_path / "run/00000015").rename(tmp_path / "run/.00000015.1234abcd.part")  # as a kill leaves it
    found = Checkpoints(tmp_path, "run").newest()
    assert found is not None
    assert found[0]["weight"].tolist() == [12.0, 12.0] and found[1] == {"loss": 0.1 + 12}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["00000012"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_one_is_skipped(tmp_path: Path, name: str) -> None:
    save(tmp_path, "run", 3, 9)
    path = tmp_path / "run/00000009" / name
    path.write_bytes(path.read_bytes()[:-5])
    found = Checkpoints(tmp_path, "run").newest()
    assert found is not None and found[1] == {"loss": 0.1 + 3}


def test_one_of_another_number_of_processes_is_an_error(tmp_path: Path) -> None:
    save(tmp_path, "run", 3)
    with pytest.raises(UserError, match="expected checkpoints of processes: 2, got 1"):
        Checkpoints(tmp_path, "run", processes=2).newest()


def test_a_run_does_not_find_those_of_others_and_keeps_the_latest_of_them(tmp_path: Path) -> None:
    for key in ("a", "b", "c", "d"):
        save(tmp_path, key, 1)
    assert Checkpoints(tmp_path, "e").newest() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "d"]
