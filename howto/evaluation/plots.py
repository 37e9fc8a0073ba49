"""The tables behind `dvc plots` and the report's charts: ROUGE by kind, by group of rows, by difference, by length."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from howto.core.atomic import atomic_file
from howto.core.schema import NO_SOURCE, Row
from howto.core.step_lists import is_numbered
from howto.evaluation.config import Evaluate
from howto.evaluation.rouge import KINDS
from howto.evaluation.scoring import Scores
from howto.evaluation.significance import bootstrap_interval

LENGTHS = {1: "1 to 24 words", 25: "25 to 74 words", 75: "75 to 149 words", 150: "150 words and more"}
MIN_ROWS = 10  # of a group that gets an interval
BIN = 0.05  # width of a bar in the histogram of row differences
Group = tuple[str, str, NDArray[np.bool_]]  # slice, name, [rows]: which rows are in it


def group_rows(rows: Sequence[Row], reference_words: NDArray[np.int64]) -> list[Group]:
    """Return the groups that have a row. The groups of one slice hold each row once."""
    categories = np.array([row.category for row in rows])
    lengths = np.digitize(reference_words, [*LENGTHS][1:])
    context = np.array([bool(row.context) for row in rows])
    procedural = np.array([is_numbered(row.output) for row in rows])
    found: list[Group] = [("category", name, categories == name) for name in sorted(set(categories.tolist()))]
    found += [("reference length", name, lengths == number) for number, name in enumerate(LENGTHS.values())]
    found += [("context", "with a context", context), ("context", "without one", ~context)]
    found += [("reference", "numbered steps", procedural), ("reference", "no numbered steps", ~procedural)]
    if any(row.source for row in rows):
        sources = np.array([row.source or NO_SOURCE for row in rows])
        found += [("source", name, sources == name) for name in sorted(set(sources.tolist()))]
    return [group for group in found if group[2].any()]


def slice_table(
    groups: Sequence[Group], base: NDArray[np.float64], adapter: NDArray[np.float64], config: Evaluate
) -> pd.DataFrame:
    """Return each group's mean ROUGE-L of both models and their difference, with intervals.

    `base` and `adapter` are [rows]. The interval of a group of fewer than MIN_ROWS rows is NaN.
    """
    table = []
    for of, name, members in tqdm(groups, desc="intervals", unit="group", disable=None, leave=False):
        line: dict[str, str | int | float] = {"slice": of, "group": name, "rows": int(members.sum())}
        for model, values in (("base", base), ("adapter", adapter), ("delta", adapter - base)):
            low, high = float("nan"), float("nan")
            if members.sum() >= MIN_ROWS:
                low, high = bootstrap_interval(
                    values[members], confidence=config.confidence, resamples=config.resamples, seed=config.seed
                )
            line |= {model: values[members].mean(), f"{model}_low": low, f"{model}_high": high}
        table.append(line)
    return pd.DataFrame(table).round(6)


def write_plots(folder: Path, scores: Scores, slices: pd.DataFrame) -> None:
    """Write rouge.csv, slices.csv, differences.csv and lengths_and_scores.csv."""
    rouge = pd.DataFrame(
        [
            (model, kind, *of_model.rouge[:, :, number].mean(axis=(0, 1)))
            for model, of_model in scores.models.items()
            for number, kind in enumerate(KINDS)
        ],
        columns=["model", "metric", "precision", "recall", "fmeasure"],
    )
    by_model = [
        slices[["slice", "group", "rows"]].assign(
            model=model, rougeL=slices[model], low=slices[f"{model}_low"], high=slices[f"{model}_high"]
        )
        for model in scores.models
    ]
    differences = scores.models["adapter"].row_means - scores.models["base"].row_means
    bins, counts = np.unique((np.floor(differences / BIN + 1e-9) * BIN).round(2), return_counts=True)
    lengths = pd.concat(
        [
            pd.DataFrame({"words": scores.reference_words, "model": model, "rougeL": of_model.row_means})
            for model, of_model in scores.models.items()
        ]
    )
    tables = {
        "rouge": rouge,
        "slices": pd.concat(by_model),
        "differences": pd.DataFrame({"difference": bins, "rows": counts}),
        "lengths_and_scores": lengths.sort_values(["words", "model"], kind="stable"),
    }
    for name, table in tables.items():
        with atomic_file(folder / f"{name}.csv") as file:
            table.round(6).to_csv(file, index=False, lineterminator="\n")
