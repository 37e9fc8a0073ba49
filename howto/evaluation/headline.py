"""The handful of numbers by which runs are compared: `dvc metrics` and `dvc exp show` have a column for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from howto.core.errors import UserError


def summarise(metrics: dict[str, Any], training: Path) -> dict[str, float]:
    """The numbers, named briefly and rounded for a table, from what `measure` found and from metrics/train.json.

    `low` and `high` are the interval of `rougeL`, that of the fine-tuned model; `gain` is what it has over the base.

    Raises:
        UserError: what training wrote is missing or damaged.
    """
    try:
        trained = json.loads(training.read_text(encoding="utf-8"))
        loss, parameters = trained["validation_loss"], trained["trainable_parameters"]
    except FileNotFoundError:
        raise UserError(f"{training}: not there; make it with `dvc repro train`") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{training}: damaged; make it again with `dvc repro -f train`") from None
    adapter = metrics["adapter"]
    found = {
        "val_loss": loss,  # None where there was no row to validate on
        "rougeL": adapter["rougeL"],
        "low": adapter["rougeL_low"],
        "high": adapter["rougeL_high"],
        "gain": metrics["delta"]["rougeL"],
    }
    rounded = {name: round(value, 4) for name, value in found.items() if value is not None}
    return {**rounded, "trainable_parameters": parameters}
