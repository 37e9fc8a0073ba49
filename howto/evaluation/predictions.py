"""Prediction files: what the models wrote for the test rows, and nothing else."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from howto.core.dvc_lock import read_lock
from howto.core.errors import UserError
from howto.core.schema import Prediction, Row, number_rows

NAMED = 3  # ids that a message names


def read_predictions(path: Path, rows: Sequence[Row], test: Path) -> list[list[Prediction]]:
    """The predictions for each test row, one for each seed, in the order of the seeds.

    Raises:
        UserError: a row has none, or not for each seed; one is of no test row, or is there twice. The message
            names lines and rows.
    """
    again = f"make it again with `dvc repro -f infer@{path.stem}`"
    number_of = {row.id: number for number, row in enumerate(rows)}
    found: list[dict[int, Prediction]] = [{} for _ in rows]
    for line, prediction in number_rows(path, Prediction):
        if prediction.id not in number_of:
            raise UserError(f"{path}:{line}: answers row {prediction.id}, which is not in {test}; {again}")
        of_row = found[number_of[prediction.id]]
        if prediction.seed in of_row:
            raise UserError(f"{path}:{line}: a second answer to row {prediction.id} (seed {prediction.seed}); {again}")
        of_row[prediction.seed] = prediction
    seeds = Counter(seed for of_row in found for seed in of_row)
    if not seeds:
        raise UserError(f"{path}: no predictions in it; {again}")
    for seed, count in sorted(seeds.items()):
        if count < len(rows):
            missing = [row.id for row, of_row in zip(rows, found, strict=True) if seed not in of_row]
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            raise UserError(
                f"{path}: {len(missing)} of the {len(rows)} rows of {test} have no answer of seed {seed}: "
                f"{', '.join(missing[:NAMED])}{more}; {again}"
            )
    return [[of_row[seed] for seed in sorted(of_row)] for of_row in found]


def check_against_lock(path: Path, lock: Path, values: dict[str, Any], params_path: Path) -> None:
    """See that DVC knows the predictions at `path`, and that they were made with the params that hold now.

    `values` are the params of `params_path` by the keys under which dvc.lock has them. Where there is no `lock`, or
    it does not know the stage yet, there is nothing to compare.

    Raises:
        UserError: it knows others, of another model or other params.
    """
    stage = read_lock(lock).get(f"infer@{path.stem}") if lock.exists() else None
    if stage is None:
        return
    known, used = stage.outs.get(str(path)), stage.params.get(params_path.name, {})
    again = f"make it again with `dvc repro infer@{path.stem}`"
    if known and known != _md5(path):
        raise UserError(f"{path}: not the file that {lock} knows, but one of another model or other params; {again}")
    for key, value in values.items():
        if key in used and used[key] != value:
            raise UserError(f"{path}: made with other params than {params_path} has now ({key}); {again}")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
