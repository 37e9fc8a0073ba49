"""Keep as many training rows of each source as its share allows, and each of them once."""

import json
from collections.abc import Mapping
from fractions import Fraction
from math import floor, lcm
from pathlib import Path

import numpy as np

from howto.core.errors import UserError
from howto.data.arrays import Codes
from howto.data.row_store import RowStore
from howto.data.split import NONE, TRAIN
from howto.data.stats import OVER_SHARE

Shares = dict[str, float | None]  # by the name of the source; None where the sources have no shares


def read_shares(path: Path) -> Shares:
    """Return what `fetch_data` wrote of several sources; empty if there is only one.

    Raise UserError if the file is damaged.
    """
    try:
        shares = json.loads(path.read_bytes())
        return {str(name): None if share is None else float(share) for name, share in shares.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged. Make it again with `dvc repro -f fetch_data`.") from None


def reject_over_share(
    store: RowStore, codes: Codes, shares: Mapping[str, float], most: int | None
) -> dict[str, tuple[int, int]]:
    """Reject training rows until the sources have these shares of them. Return (rows left, rows before) of each.

    `most` rows are left, or as many as there can be if it is None. Of each source those with the highest places in
    [0, 1) are left, as in the split: so the order of rows does not matter, and a larger set contains a smaller one.

    Raise UserError if there are fewer than `most`, or none of a source that has a share.
    """
    numbers = {name: number for number, name in enumerate(shares)}
    of = np.fromiter((numbers.get(name, -1) for name in store.sources), dtype=np.int64, count=len(store))
    rows = {name: np.flatnonzero((codes == TRAIN) & (of == number)) for name, number in numbers.items()}
    before = {name: len(of_source) for name, of_source in rows.items()}
    for name, share in shares.items():
        if share and not before[name]:
            fix = "Check the rows of this source, or remove it."
            raise UserError(f"params.yaml: data.sources.{name}: {share:g} of no training rows at all. {fix}")
    total = most_rows(shares, before)
    if most is not None and most > total:
        found = ", ".join(f"{count} of {name}" for name, count in before.items())
        raise UserError(
            f"params.yaml: prepare.split.train: expected {most} rows in the shares of data.sources, got {found}, which "
            f"is enough for {total}. Lower it."
        )
    left = rows_by_share(shares, total if most is None else most)
    place, tie = store.arrays["place"], store.arrays.get("id", store.arrays["row"])
    over = np.full(len(store), -1, dtype=np.int64)
    for name, of_source in rows.items():
        by_place = of_source[np.lexsort((tie[of_source], -place[of_source]))]
        over[by_place[left[name] :]] = 0
    store.reject(OVER_SHARE, "", over)
    codes[over == 0] = NONE
    return {name: (left[name], before[name]) for name in shares}


def most_rows(shares: Mapping[str, float], there: Mapping[str, int]) -> int:
    """Return how many rows there can be together, if no source gives more rows than are `there`."""
    exact = _exact(shares)
    return min(floor(there[name] / share) for name, share in exact.items() if share)


def rows_by_share(shares: Mapping[str, float], total: int) -> dict[str, int]:
    """Return the rows of each source, `total` together. Each number is within one row of share x total.

    By the quota method of Balinski and Young (1975, American Mathematical Monthly 82): unlike with rounding to the
    largest remainders, no source has fewer rows where the total is larger.
    """
    exact = _exact(shares)
    period = lcm(*(share.denominator for share in exact.values()))  # so many rows meet the shares exactly
    weights = {name: int(share * period) for name, share in exact.items()}
    rest = dict.fromkeys(shares, 0)
    for number in range(1, total % period + 1):
        below_quota = (name for name in shares if rest[name] * period < weights[name] * number)
        rest[max(below_quota, key=lambda name: weights[name] / (rest[name] + 1))] += 1
    return {name: weights[name] * (total // period) + rest[name] for name in shares}


def _exact(shares: Mapping[str, float]) -> dict[str, Fraction]:
    """Return the shares as ratios of whole numbers, such as 1/3 for 0.3333333333333333, that sum to 1."""
    ratios = {name: Fraction(share).limit_denominator(1_000_000) for name, share in shares.items()}
    return {name: ratio / sum(ratios.values()) for name, ratio in ratios.items()}
