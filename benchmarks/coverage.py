"""Measure how often 95 % intervals of a difference cover the truth, if rows and training seeds are drawn anew.

python -m benchmarks.coverage [--trials 2000]

It simulates the ROUGE-L of two models on 120 rows, with known variances and a true difference of 0. `sides_with_seeds`
is 1 if the old model is a base model, which has no training seed, and 2 if both models are trained. As in the committed
run, one fine-tuned model differs from the base by a standard deviation of 0.058 over rows. `seeds_to_rows` is the part
of the difference's variance that comes from seeds, divided by the part that comes from rows.

Three intervals are compared: a bootstrap of rows, a plain hierarchical bootstrap (of rows, and of each side's seeds),
and `over_rows_and_seeds`. `p_below_0.05` is how often its p-value claims a difference.
"""

import argparse
import json
import os
import platform
import time
from datetime import UTC, datetime
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.prepare import cpu_name
from howto.core.atomic import write_json
from howto.evaluation.significance import over_rows_and_seeds

RESULT = Path(__file__).parent / "results" / "coverage.json"
ROWS, RESAMPLES = 120, 2000
ERROR_SD = 0.03  # of one run in one row; between two seeds of the committed run it is 0.029
DIFFERENCE_SD = {1: 0.05, 2: 0.02}  # of a row's difference in all runs, by sides with seeds
SEED_SD = 0.003  # of a run's mean
METHODS = ("rows_alone", "hierarchical_bootstrap", "over_rows_and_seeds")
Scores = NDArray[np.float64]  # [trials, rows, runs]


def main() -> None:
    """Simulate every setting, and print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    start = time.perf_counter()
    settings: list[dict[str, Any]] = []
    for skewed, sides, seeds, ratio in product((False, True), (1, 2), (2, 3, 5, 10), (0, None, 1, 9)):
        of_rows = row_variance(sides, seeds)
        exact = sides * SEED_SD**2 / seeds / of_rows if ratio is None else ratio
        new, old = simulate(np.random.default_rng(len(settings)), trials, sides, seeds, exact, skewed=skewed)
        found = {
            "scores": "skewed" if skewed else "normal",
            "sides_with_seeds": sides,
            "seeds": seeds,
            "seeds_to_rows": round(exact, 3),
            **coverage(new, old),
        }
        print(json.dumps(found), flush=True)
        settings.append(found)
    result = {
        "command": "python -m benchmarks.coverage",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "trials": trials,
        "rows": ROWS,
        "resamples": RESAMPLES,
        "seconds": round(time.perf_counter() - start),
        "settings": settings,
    }
    write_json(RESULT, result)


def row_variance(sides: int, seeds: int) -> float:
    """Return the variance of the mean difference that comes from the choice of rows."""
    return (DIFFERENCE_SD[sides] ** 2 + sides * ERROR_SD**2 / seeds) / ROWS


def simulate(
    chance: np.random.Generator, trials: int, sides: int, seeds: int, seeds_to_rows: float, *, skewed: bool
) -> tuple[Scores, Scores]:
    """Return scores of a new and an old model whose true means are equal. Skewed scores have a long tail to 1."""

    def effects(sd: float, *shape: int) -> Scores:
        """Draw effects with mean 0; the skewed ones from a beta distribution, shifted and scaled."""
        if not skewed:
            return chance.normal(0, sd, shape)
        a, b = 1.2, 6.0
        return (chance.beta(a, b, shape) - a / (a + b)) * sd * (a + b) / sqrt(a * b / (a + b + 1))

    seed_sd = sqrt(seeds_to_rows * row_variance(sides, seeds) * seeds / sides)
    base = 0.3 + effects(0.037, trials, ROWS, 1)
    new, old = (
        base + chance.normal(0, seed_sd, (trials, 1, seeds)) + effects(ERROR_SD, trials, ROWS, seeds) for _ in range(2)
    )
    return new + effects(DIFFERENCE_SD[sides], trials, ROWS, 1), old if sides == 2 else base


def coverage(new: Scores, old: Scores) -> dict[str, float]:
    """Return how often each 95 % interval covers 0, and how often the p-value is below 0.05."""
    chance, quantiles = np.random.default_rng(0), (0.025, 0.975)
    rows = chance.multinomial(ROWS, [1 / ROWS] * ROWS, RESAMPLES) / ROWS  # [resamples, rows]
    resampled = 0
    for side, sign in ((new, 1), (old, -1)):
        runs = side.shape[2]
        seeds = chance.multinomial(runs, [1 / runs] * runs, RESAMPLES) / runs  # [resamples, runs]
        resampled += sign * sum(rows @ side[:, :, run].T * seeds[:, [run]] for run in range(runs))
    bootstraps = rows @ (new.mean(axis=2) - old.mean(axis=2)).T, resampled  # [resamples, trials]
    ours = [over_rows_and_seeds(*pair, confidence=0.95) for pair in zip(new, old, strict=True)]
    limits = [*(np.quantile(one, quantiles, axis=0) for one in bootstraps), np.array([one[:2] for one in ours]).T]
    covered = [float(np.mean((low <= 0) & (high >= 0))) for low, high in limits]
    claimed = float(np.mean([one.p_value < 0.05 for one in ours]))
    return {**dict(zip(METHODS, covered, strict=True)), "p_below_0.05": claimed}


if __name__ == "__main__":
    main()
