"""An interval covers the truth as often as its confidence, and p-values are those of SciPy."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from howto.evaluation.significance import bootstrap_interval, permutation_p_value


def test_equal_values_have_an_interval_of_zero_width_and_show_no_difference() -> None:
    for count in (1, 9):
        assert bootstrap_interval([0.25] * count, confidence=0.95, resamples=200, seed=0) == (0.25, 0.25)
    assert permutation_p_value(np.zeros(30), resamples=500, seed=0) == 1


def differences(chance: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Row differences as a pair of models makes them: skewed, bounded, with many ties; their mean is 0.06."""
    tie = chance.random(rows) < 0.3
    return np.where(tie, 0.0, chance.beta(1.2, 3, rows) - 0.2)


def test_the_95_percent_interval_covers_the_truth_in_93_to_97_percent_of_trials() -> None:
    chance = np.random.default_rng(0)
    truth = 0.7 * (1.2 / 4.2 - 0.2)
    covered = 0
    for trial in range(1000):
        low, high = bootstrap_interval(differences(chance, 150), confidence=0.95, resamples=1000, seed=trial)
        covered += low <= truth <= high
    assert 930 <= covered <= 970


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.1])
def test_the_p_value_is_scipys(shift: float) -> None:
    values = np.random.default_rng(2).normal(shift, 0.2, 60)
    expected = stats.permutation_test(
        (values, np.zeros_like(values)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).pvalue
    assert permutation_p_value(values, resamples=20_000, seed=0) == pytest.approx(expected, abs=0.012)


def test_the_p_value_of_few_rows_is_that_of_all_their_signs_and_never_0() -> None:
    # Of the 8 ways to set the signs of 1, 2, 3 two give a sum of 6 or -6: p = 2/8.
    assert permutation_p_value([1.0, 2.0, 3.0], resamples=40_000, seed=0) == pytest.approx(0.25, abs=0.01)
    # 1, 2, -3: all 8 sums are at least as far from 0 as 0 is.
    assert permutation_p_value([1.0, 2.0, -3.0], resamples=1000, seed=0) == 1
    assert permutation_p_value(np.ones(50), resamples=999, seed=0) == pytest.approx(1 / 1000)
