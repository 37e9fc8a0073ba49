"""Read the prediction files, and check that they answer the test rows and are the ones that dvc.lock records."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from howto.core.dvc_lock import read_lock
from howto.core.errors import UserError
from howto.core.schema import Prediction, Row, number_rows

MODELS = ("base", "adapter")
SHOWN_IDS = 3  # of rows without an answer
Answers = list[list[Prediction]]  # [rows][seeds] of one model


def read_predictions(folder: Path, rows: Sequence[Row], test: Path) -> dict[str, Answers]:
    """Return each model's answers to the rows of `test`, in the order of the rows and of the seeds.

    Raise UserError if a file is missing or damaged, does not answer each row once per seed, has empty answers alone, or
    the seeds of the two models differ. The message names lines and rows.
    """
    answers = {model: read_answers(folder / f"{model}.jsonl", rows, test) for model in MODELS}
    base, adapter = ([answer.seed for answer in answers[model][0]] for model in MODELS)
    if base != adapter:
        raise UserError(f"{folder}: base has the seeds {base}, adapter {adapter}. Run `dvc repro`.")
    return answers


def read_answers(path: Path, rows: Sequence[Row], test: Path) -> Answers:
    """Return one model's answers. Raises as `read_predictions`."""
    again = f"Make it again with `dvc repro -f infer@{path.stem}`."
    number_of = {row.id: number for number, row in enumerate(rows)}
    by_seed: list[dict[int, Prediction]] = [{} for _ in rows]
    for line, prediction in number_rows(path, Prediction):
        if prediction.id not in number_of:
            raise UserError(f"{path}:{line}: answers row {prediction.id}, which is not in {test}. {again}")
        of_row = by_seed[number_of[prediction.id]]
        if prediction.seed in of_row:
            raise UserError(f"{path}:{line}: a second answer to row {prediction.id} (seed {prediction.seed}). {again}")
        of_row[prediction.seed] = prediction
    seeds = {seed for of_row in by_seed for seed in of_row}
    missing = [row.id for row, of_row in zip(rows, by_seed, strict=True) if not of_row or of_row.keys() != seeds]
    if missing:
        ids = ", ".join(missing[:SHOWN_IDS]) + (", ..." if len(missing) > SHOWN_IDS else "")
        lack = f"{len(missing)} of the {len(rows)} rows of {test} lack an answer (seeds {sorted(seeds)})"
        raise UserError(f"{path}: {lack}: {ids}. {again}")
    found = [answer for of_row in by_seed for answer in of_row.values()]
    if not any(answer.text for answer in found):
        raise UserError(f"{path}: all {len(found)} answers are empty: {_reason(found, path.stem)} {again}")
    return [[of_row[seed] for seed in sorted(of_row)] for of_row in by_seed]


def _reason(empty: Sequence[Prediction], model: str) -> str:
    """Return the likely reason why all answers of "base" or "adapter" are empty, and what to do."""
    stops = {answer.stop for answer in empty}
    if stops == {"too_long"}:
        return "each prompt is too long. Lower infer.max_new_tokens, or raise infer.max_prompt_tokens."
    if stops == {"length"}:
        return "each has control tokens or white space alone. Raise infer.max_new_tokens, or take another base."
    if model == "base":
        return (
            "the model ends each at once, so its chat template may not be the one of its training. Take a chat model."
        )
    return "the model ends each at once. Lower learning_rate, or look at the outputs in data/prepared/train.jsonl."


def check_against_lock(path: Path, lock: Path, values: dict[str, Any], params_path: Path, stage_name: str = "") -> None:
    """Check that `lock` records the predictions at `path`, made with `values`: the current params, by their keys.

    They are those of the stage `stage_name`, by default infer@base or infer@adapter.

    Nothing is checked if there is no `lock`, or if it does not have the stage yet. Raise UserError if it records other
    predictions or params.
    """
    stage_name = stage_name or f"infer@{path.stem}"
    stage = read_lock(lock).get(stage_name) if lock.exists() else None
    if stage is None:
        return
    recorded, used = stage.outs.get(str(path)), stage.params.get(params_path.name, {})
    again = f"Make it again with `dvc repro {stage_name}`."
    if recorded and recorded != hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest():
        raise UserError(f"{path}: not the file that {lock} records; its model or params may differ. {again}")
    for key, value in values.items():
        if key in used and used[key] != value:
            raise UserError(f"{path}: made with other params than {params_path} has now ({key}). {again}")
