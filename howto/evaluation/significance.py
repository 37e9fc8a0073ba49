"""Confidence intervals of means over test rows and training seeds, and p-values of differences between two models."""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SIGNS = 2**23  # random signs in memory at once
SMALLEST_P = 1e-6  # no smaller p-value is reported of a t distribution, whose far tail only approximates the scores'


class Certainty(NamedTuple):
    """How certain a mean over rows and training seeds is, or a difference between two such means."""

    low: float
    high: float
    p_value: float
    se_rows: float  # standard error from the choice of rows, and of what only one run answers in one row
    se_seeds: float  # standard error from what a training seed changes in all rows together


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64], *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the mean's bootstrap interval, bias-corrected and accelerated (BCa, Efron 1987), by SciPy.

    To compare two models, pass the differences row by row: rows are paired. Equal values have a zero-width interval.
    """
    from scipy import stats  # half a second

    sample = np.asarray(values, dtype=np.float64)
    if np.ptp(sample) == 0:
        return float(sample[0]), float(sample[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (sample,),
            np.mean,
            confidence_level=confidence,
            n_resamples=resamples,
            batch=100,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(interval.low), float(interval.high)


def permutation_p_value(differences: Sequence[float] | NDArray[np.float64], *, resamples: int, seed: int) -> float:
    """Return how often chance alone gives a mean difference as large as this one, in either direction.

    It swaps the two models in each row at random (paired permutation test, Fisher 1935). The observed difference counts
    as one of the resamples (Phipson and Smyth 2010), so the result is never 0. It equals SciPy's `permutation_test` and
    takes a hundredth of the time.
    """
    sample = np.asarray(differences, dtype=np.float64)
    observed = abs(sample.sum())
    rng = np.random.default_rng(seed)
    rows = max(1, SIGNS // len(sample))
    as_large = 0
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        bits = np.frombuffer(rng.bytes(count * -(-len(sample) // 8)), dtype=np.uint8).reshape(count, -1)
        kept = np.unpackbits(bits, axis=1, count=len(sample)).astype(np.float64)
        sums = kept @ (2 * sample) - sample.sum()
        as_large += int((np.abs(sums) >= observed * (1 - 1e-9)).sum())
    return (as_large + 1) / (resamples + 1)


def over_rows_and_seeds(new: NDArray[np.float64], old: NDArray[np.float64], *, confidence: float) -> Certainty:
    """Return the interval and p-value of the mean of `new` less that of `old`, for other rows and other training seeds.

    Both are [rows, runs]. Rows are paired. Each run has a training seed of its own, independent of all others; a side
    of one run has no spread over seeds. Rows and seeds are crossed random effects (two-way analysis of variance). Each
    effect has a Student interval, and the squares of the half-widths add up (Howe 1974; MOVER, Zou and Donner 2008).
    The degrees of freedom of both sides' seeds are Welch's (1947). At a confidence of 1 - p the interval ends at 0.
    benchmarks/coverage.py measures the coverage.

    One row shows nothing about other rows: the interval has zero width, and p is 1.
    """
    from scipy.optimize import brentq
    from scipy.special import stdtrit

    differences = new.mean(axis=1) - old.mean(axis=1)
    rows, mean = len(differences), float(differences.mean())
    if rows == 1:
        return Certainty(mean, mean, 1.0, 0.0, 0.0)
    se_rows = float(differences.std(ddof=1)) / math.sqrt(rows)
    with_seeds = [side for side in (new, old) if side.shape[1] > 1]
    squares = [np.array(mean_squares(side)) / side.size for side in with_seeds]  # of seeds, of the error
    se_seeds = math.sqrt(sum(max(0.0, of_seeds - of_error) for of_seeds, of_error in squares))
    total = sum(of_seeds for of_seeds, _ in squares)
    each = [of_seeds**2 / (side.shape[1] - 1) for side, (of_seeds, _) in zip(with_seeds, squares, strict=True)]
    freedom = total**2 / sum(each) if total else 1

    def half_width(p: float) -> float:
        return math.hypot(stdtrit(rows - 1, 1 - p / 2) * se_rows, stdtrit(freedom, 1 - p / 2) * se_seeds)

    half, p_value = half_width(1 - confidence), 1.0
    if mean:
        beyond = half_width(SMALLEST_P) <= abs(mean)
        p_value = SMALLEST_P if beyond else float(brentq(lambda p: half_width(p) - abs(mean), SMALLEST_P, 1))
    return Certainty(mean - half, mean + half, p_value, se_rows, se_seeds)


def mean_squares(scores: NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean squares of the columns and of the error in a two-way analysis of variance without replication."""
    rows, columns = scores.shape
    effects = scores.mean(axis=0) - scores.mean()
    errors = scores - scores.mean(axis=1, keepdims=True) - effects
    of_columns = rows * float((effects**2).sum()) / (columns - 1)
    return of_columns, float((errors**2).sum()) / ((rows - 1) * (columns - 1))
