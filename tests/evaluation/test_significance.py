"""An interval covers the truth as often as it says, and chance alone shows no difference."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from howto.evaluation.significance import bootstrap_interval, permutation_p_value


def test_the_interval_is_scipys_and_the_same_every_time() -> None:
    values = np.random.default_rng(1).beta(1, 3, 80)
    found = bootstrap_interval(values, confidence=0.9, resamples=2000, seed=4)
    wanted = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=2000, batch=100, rng=np.random.default_rng(4)
    ).confidence_interval
    assert found == (wanted.low, wanted.high)
    assert bootstrap_interval(list(values), confidence=0.9, resamples=2000, seed=4) == found


def test_the_interval_narrows_with_more_rows() -> None:
    few = [0.1, 0.5, 0.3, 0.9, 0.2, 0.4]
    low, high = bootstrap_interval(few, confidence=0.95, resamples=2000, seed=0)
    assert low < sum(few) / len(few) < high
    narrow = bootstrap_interval(few * 20, confidence=0.95, resamples=2000, seed=0)
    assert narrow[1] - narrow[0] < (high - low) / 2


def test_values_that_are_all_the_same_have_an_interval_of_no_width() -> None:
    assert bootstrap_interval([0.25] * 9, confidence=0.95, resamples=200, seed=0) == (0.25, 0.25)
    assert bootstrap_interval([0.25], confidence=0.95, resamples=200, seed=0) == (0.25, 0.25)


def differences(chance: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Row differences as a pair of models makes them: skewed, bounded, with many ties; their mean is 0.06."""
    tie = chance.random(rows) < 0.3
    gain = chance.beta(1.2, 3, rows) - 0.2
    return np.where(tie, 0.0, gain)


def test_the_95_percent_interval_covers_the_truth_in_93_to_97_percent_of_trials() -> None:
    chance = np.random.default_rng(0)
    truth = 0.7 * (1.2 / 4.2 - 0.2)
    covered = 0
    trials = 1000
    for trial in range(trials):
        low, high = bootstrap_interval(differences(chance, 150), confidence=0.95, resamples=1000, seed=trial)
        covered += low <= truth <= high
    assert 0.93 <= covered / trials <= 0.97


@pytest.mark.parametrize("shift", [0.0, 0.03, 0.1])
def test_the_p_value_is_scipys(shift: float) -> None:
    values = np.random.default_rng(2).normal(shift, 0.2, 60)
    found = permutation_p_value(values, resamples=20_000, seed=0)
    wanted = stats.permutation_test(
        (values, np.zeros_like(values)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).pvalue
    assert found == pytest.approx(wanted, abs=0.012)


def test_the_p_value_of_few_rows_is_that_of_all_their_signs() -> None:
    values = [1.0, 2.0, 3.0]
    # Of the 8 ways to set the signs of 1, 2, 3 two give a sum of 6 or -6: p = 2/8.
    assert permutation_p_value(values, resamples=40_000, seed=0) == pytest.approx(0.25, abs=0.01)
    # 1, 2, -3: all 8 sums are at least as far from 0 as 0 is.
    assert permutation_p_value([1.0, 2.0, -3.0], resamples=1000, seed=0) == 1


def test_without_a_difference_p_values_are_spread_evenly() -> None:
    chance = np.random.default_rng(5)
    found = [permutation_p_value(chance.normal(0, 1, 40), resamples=500, seed=n) for n in range(400)]
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.08


def test_a_model_against_itself_shows_no_difference() -> None:
    same = np.zeros(30)
    assert permutation_p_value(same, resamples=500, seed=0) == 1
    assert bootstrap_interval(same, confidence=0.95, resamples=500, seed=0) == (0, 0)


def test_p_is_never_0() -> None:
    assert permutation_p_value(np.ones(50), resamples=999, seed=0) == pytest.approx(1 / 1000)
