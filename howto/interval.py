"""How sure a mean over test rows is."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats


def bootstrap_interval(values: list[float], *, confidence: float, resamples: int, seed: int) -> tuple[float, float]:
    """Bootstrap confidence interval of the mean: bias-corrected and accelerated (Efron 1987), by SciPy.

    For the difference of two models give the differences row by row: the rows are paired. Values that
    are all the same give an interval of no width.
    """
    if len(set(values)) < 2:
        return values[0], values[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (np.asarray(values),),
            np.mean,
            confidence_level=confidence,
            n_resamples=resamples,
            batch=100,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(interval.low), float(interval.high)
