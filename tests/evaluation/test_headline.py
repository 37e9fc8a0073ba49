"""The six numbers by which runs are compared, and what is said where training left none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from howto.core.errors import UserError
from howto.evaluation.headline import summarise

METRICS = {
    "adapter": {"rougeL": 0.612614, "rougeL_low": 0.57279, "rougeL_high": 0.64863, "rouge1": 0.649105},
    "base": {"rougeL": 0.093362},
    "delta": {"rougeL": 0.519252, "p_value": 0.0001},
}


def training(folder: Path, text: str) -> Path:
    path = folder / "train.json"
    path.write_text(text, encoding="utf-8")
    return path


def test_it_is_the_fine_tuned_models_score_and_gain_beside_loss_and_size(tmp_path: Path) -> None:
    path = training(tmp_path, '{"validation_loss": 0.231873, "trainable_parameters": 72192, "steps": 828}')
    assert summarise(METRICS, path) == {
        "val_loss": 0.2319,
        "rougeL": 0.6126,
        "low": 0.5728,
        "high": 0.6486,
        "gain": 0.5193,
        "trainable_parameters": 72192,
    }


def test_without_rows_to_validate_on_there_is_no_loss_in_it(tmp_path: Path) -> None:
    path = training(tmp_path, '{"validation_loss": null, "trainable_parameters": 1}')
    assert "val_loss" not in summarise(METRICS, path)


def test_a_training_that_diverged_is_written_as_it_is(tmp_path: Path) -> None:
    path = training(tmp_path, '{"validation_loss": NaN, "trainable_parameters": 1}')
    assert json.dumps(summarise(METRICS, path)["val_loss"]) == "NaN"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"validation_loss": 1.0}', '{"validation_loss": "low", "train'])
def test_a_damaged_file_is_named_with_what_makes_it_again(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"train\.json: damaged; make it again with `dvc repro -f train`"):
        summarise(METRICS, training(tmp_path, text))


def test_a_missing_file_is_named_with_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.json: not there; make it with `dvc repro train`"):
        summarise(METRICS, tmp_path / "train.json")
