"""Where a gain comes from: the test rows by category, by length of the reference, by context, and by form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from howto.core.schema import Row
from howto.evaluation.config import Evaluate
from howto.evaluation.significance import bootstrap_interval

LENGTHS = {"1 to 24 words": 25, "25 to 74 words": 75, "75 to 149 words": 150}
LONGEST = "150 words and more"
FEW = 10  # rows; an interval from fewer says nothing, so there is none


def groups(
    rows: Sequence[Row], reference_words: NDArray[np.int64], procedural: NDArray[np.bool_]
) -> list[tuple[str, str, NDArray[np.bool_]]]:
    """(slice, group, which rows [rows]) for each group that has a row."""
    categories = np.array([row.category for row in rows])
    lengths = np.array([next((name for name, end in LENGTHS.items() if n < end), LONGEST) for n in reference_words])
    context = np.array([bool(row.context) for row in rows])
    found = [("category", name, categories == name) for name in sorted(set(categories.tolist()))]
    found += [("reference length", name, lengths == name) for name in (*LENGTHS, LONGEST)]
    found += [("context", "with a context", context), ("context", "without one", ~context)]
    found += [("reference", "numbered steps", procedural), ("reference", "no numbered steps", ~procedural)]
    return [(of, name, which) for of, name, which in found if which.any()]


def slice_table(
    found: Sequence[tuple[str, str, NDArray[np.bool_]]],
    base: NDArray[np.float64],
    adapter: NDArray[np.float64],
    params: Evaluate,
) -> pd.DataFrame:
    """Mean ROUGE-L of both models and their difference in each group, with intervals.

    `base` and `adapter` are [rows]. A group of fewer than FEW rows has no interval: its ends are NaN.
    """
    table = []
    for of, name, which in tqdm(found, desc="intervals", unit="group", disable=None, leave=False):
        line: dict[str, str | int | float] = {"slice": of, "group": name, "rows": int(which.sum())}
        for model, values in (("base", base), ("adapter", adapter), ("delta", adapter - base)):
            low, high = float("nan"), float("nan")
            if which.sum() >= FEW:
                low, high = bootstrap_interval(
                    values[which], confidence=params.confidence, resamples=params.resamples, seed=params.seed
                )
            line |= {model: values[which].mean(), f"{model}_low": low, f"{model}_high": high}
        table.append(line)
    return pd.DataFrame(table).round(6)
