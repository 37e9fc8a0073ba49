"""dvc.lock is read as typed stages, or the problem is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from howto.core.dvc_lock import LockedStage, read_lock
from howto.core.errors import UserError

LOCK = """\
schema: '2.0'
stages:
  train:
    cmd: python -m stages.train
    deps: [{path: data/rows, hash: md5, md5: ab12, size: 3}]
    params: {params.yaml: {train.seed: 42}}
    outs: [{path: models/adapter, hash: md5, md5: cd34.dir, size: 3, nfiles: 1}]
  evaluate:
    cmd: [echo, echo]
"""


def test_each_stage_has_its_hashes_by_path_and_its_params_by_file(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(LOCK, encoding="utf-8")
    assert read_lock(path) == {
        "train": LockedStage(
            {"data/rows": "ab12"}, {"params.yaml": {"train.seed": 42}}, {"models/adapter": "cd34.dir"}
        ),
        "evaluate": LockedStage({}, {}, {}),
    }


@pytest.mark.parametrize("text", ["", "stages: [", "stages: 3", "stages: {train: }", LOCK[: LOCK.index(", md5: ab12")]])
def test_a_damaged_file_and_a_missing_one_are_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "dvc.lock"
    with pytest.raises(UserError, match="no such file"):
        read_lock(path)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        read_lock(path)
