"""An interval covers the truth as often as its confidence, and p-values are those of SciPy."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from benchmarks.coverage import coverage, simulate
from howto.evaluation.significance import bootstrap_interval, mean_squares, over_rows_and_seeds, permutation_p_value


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


BY_HAND = np.array([[1.0, 2.0], [3.0, 6.0]])  # [rows, runs]


def test_two_rows_and_two_seeds_by_hand() -> None:
    # Seeds have the means 2 and 4: 2 rows * (1 + 1). Errors are 0.5, -0.5, -0.5, 0.5. Each has one degree of freedom.
    assert mean_squares(BY_HAND) == pytest.approx((4, 1))
    found = over_rows_and_seeds(BY_HAND, np.zeros((2, 1)), confidence=0.95)
    # Rows have the means 1.5 and 4.5: a variance of 4.5, over 2 rows. Seeds: (4 - 1) / (2 rows * 2 runs).
    assert (found.se_rows**2, found.se_seeds**2) == pytest.approx((2.25, 0.75))
    # The mean 3 is sqrt(3) standard errors from 0. Student's t with one degree of freedom is Cauchy's distribution.
    assert found.high - 3 == pytest.approx(math.tan(math.pi * 0.475) * math.sqrt(3))
    assert found.high + found.low == pytest.approx(6)
    assert found.p_value == pytest.approx(1 - 2 * math.atan(math.sqrt(3)) / math.pi)
    # Of both sides: rows do not differ, variances add up, and Welch's degrees of freedom are 2 ** 2 / (1 + 1).
    found = over_rows_and_seeds(BY_HAND, BY_HAND, confidence=0.95)
    assert (found.se_rows, found.se_seeds**2, found.p_value) == pytest.approx((0, 1.5, 1))
    assert found.high == -found.low == pytest.approx(stats.t.ppf(0.975, 2) * math.sqrt(1.5))


def test_one_run_a_side_has_student_s_paired_interval_and_one_side_with_seeds_has_their_spread() -> None:
    chance = np.random.default_rng(1)
    new, old = chance.normal(0.01, 0.05, (40, 3)), chance.normal(0, 0.05, (40, 1))
    found, expected = over_rows_and_seeds(new[:, :1], old, confidence=0.9), stats.ttest_rel(new[:, 0], old[:, 0])
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.9))
    assert found.p_value == pytest.approx(expected.pvalue) and found.se_seeds == 0
    new += [-0.2, 0, 0.2]
    of_seeds, of_error = mean_squares(new)
    for sides in ((new, old), (old, new)):
        assert over_rows_and_seeds(*sides, confidence=0.9).se_seeds ** 2 == pytest.approx((of_seeds - of_error) / 120)


def test_the_p_value_is_below_0_05_if_the_95_percent_interval_excludes_0_and_never_0() -> None:
    chance = np.random.default_rng(3)
    for mean in (0.0, 0.01, 0.02, 0.03, 0.04):
        found = over_rows_and_seeds(chance.normal(mean, 0.1, (50, 4)), np.zeros((50, 1)), confidence=0.95)
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)
    assert 0 < over_rows_and_seeds(BY_HAND + 1e9, BY_HAND, confidence=0.95).p_value < 0.001


def test_equal_scores_and_a_single_row_show_no_difference() -> None:
    for scores in (np.full((9, 3), 0.25), np.full((9, 1), 0.25), np.full((1, 3), 0.25)):
        assert over_rows_and_seeds(scores, scores, confidence=0.95) == (0, 0, 1, 0, 0)
    assert over_rows_and_seeds(np.array([[1.0, 0.5]]), np.zeros((1, 2)), confidence=0.95) == (0.75, 0.75, 1, 0, 0)


@pytest.mark.parametrize(
    ("sides", "seeds", "seeds_to_rows", "skewed"),
    [(1, 3, 9, False), (1, 5, 1, True), (2, 3, 9, True), (2, 5, 0, False)],
)
def test_the_interval_over_rows_and_seeds_covers_the_truth(
    sides: int, seeds: int, seeds_to_rows: float, skewed: bool
) -> None:
    scores = simulate(np.random.default_rng(0), 300, sides, seeds, seeds_to_rows, skewed=skewed)
    found = coverage(*scores)
    assert 0.92 <= found["over_rows_and_seeds"] <= 0.98
    assert found["p_below_0.05"] == pytest.approx(1 - found["over_rows_and_seeds"])
    if seeds_to_rows == 9:  # seeds dominate
        assert found["rows_alone"] < 0.85 and found["hierarchical_bootstrap"] < found["over_rows_and_seeds"]
