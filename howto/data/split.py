"""Dealing rows into train, validation and test without a leak.

Where a row goes is read off a hash of its intent's normal key: so it depends on nothing but that row, and neither the
order of the rows nor rows that come later move it. Rows of one intent go together by themselves. A row that shares its
context, or a near intent, with a row of another split would leak: it is left out of train (or of validation), and the
test rows stay as they are.

To join such rows into one group and to deal it as a whole, as is often done, keeps every row, but then a new row that
joins two groups moves one of them, and a model is scored on rows that its predecessor was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from howto.core.errors import UserError
from howto.data.config import Split
from howto.data.minhash import U64, NearIndex

TRAIN, VALIDATION, TEST, NONE = 0, 1, 2, 3
NAMES = ("train", "validation", "test")

Codes = NDArray[np.uint8]
Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]


def deal(places: NDArray[np.float64], given_test: Mask, params: Split) -> Codes:
    """The split of each row by its place in [0, 1): test has the lowest, then validation; train the highest.

    `given_test` marks the rows of a separate test file: they are the test then, and no other row is. A
    share takes the rows whose place falls into a part of [0, 1) of that length. A number of rows takes
    as many, and more only where rows share an intent; then added rows can push old ones out of test and
    validation, never into them. What neither train, validation nor test takes is NONE.

    Raises:
        UserError: there are fewer rows than the numbers in `params` sum up to.
    """
    codes = np.full(len(places), NONE, dtype=np.uint8)
    codes[given_test] = TEST
    dealt = np.sort(places[~given_test])
    test = 0 if given_test.any() else params.test
    numbers = [part for part in (test, params.validation, params.train) if isinstance(part, int)]
    if sum(numbers) > len(dealt):
        raise UserError(
            f"params.yaml: prepare.split: {sum(numbers)} rows are asked for, and there are {len(dealt)}; "
            "lower the numbers or bring more rows"
        )
    end_of_test = _end(dealt, 0.0, test)
    end_of_validation = _end(dealt, end_of_test, params.validation)
    start_of_train = max(end_of_validation, _start(dealt, params.train))
    codes[~given_test & (places >= start_of_train)] = TRAIN
    codes[~given_test & (places < end_of_validation)] = VALIDATION
    codes[~given_test & (places < end_of_test)] = TEST
    return codes


def _end(places: NDArray[np.float64], start: float, part: float | int) -> float:
    """Where the part that begins at `start` ends; `places` are sorted."""
    if isinstance(part, float):
        return start + part
    if part == 0:
        return start
    last = places[np.searchsorted(places, start) :][:part]
    return float(np.nextafter(last[-1], 2)) if len(last) else start


def _start(places: NDArray[np.float64], part: Literal["rest"] | float | int) -> float:
    """Where train begins, which ends at 1; `places` are sorted."""
    if part == "rest":
        return 0.0
    return 1 - part if isinstance(part, float) else float(places[-part])


def find_leaks(
    codes: Codes, intents: U64, contexts: U64, near_index: Callable[[Numbers], NearIndex] | None
) -> dict[str, Numbers]:
    """Which rows of validation match one of test, and which of train match one of test or of what stays in validation.

    Args:
        codes: the split of each row.
        intents: hashes of the rows' intents.
        contexts: hashes of their contexts; 0 where there is none.
        near_index: gives an index of the intents of those rows (no two of which have the same); None if near
            intents are no leak.

    Returns:
        By what the two have in common ("intent", "context", or "near intent"): for each row one that it
        leaks to, else -1.
    """
    _, first, number = np.unique(intents, return_index=True, return_inverse=True)
    found = {what: np.full(len(codes), -1, dtype=np.int64) for what in ("intent", "context", "near intent")}
    index = near_index(first) if near_index else None
    safe = codes == TEST
    _add(index, number[safe])
    for code in (VALIDATION, TRAIN):
        waiting = codes == code
        for what, keys in (("intent", intents), ("context", contexts)):
            other = _same(keys, safe)
            found[what][waiting] = other[waiting]
            waiting &= other < 0
        if index:
            near = np.full(len(first), -1, dtype=np.int64)
            for intent in np.unique(number[waiting]):
                if index.crowded[intent] and (match := index.find(intent)) is not None:
                    near[intent] = first[match]
            found["near intent"][waiting] = near[number][waiting]
            waiting &= near[number] < 0
        safe |= waiting
        if code == VALIDATION:
            _add(index, number[waiting])
    return found


def _add(index: NearIndex | None, intents: Numbers) -> None:
    if index:
        for intent in np.unique(intents):
            if index.crowded[intent]:
                index.add(intent)


def _same(keys: U64, among: Mask) -> Numbers:
    """For each row the first one `among` those marked that has the same key (other than 0), else -1."""
    wanted, rows = np.unique(keys[among], return_index=True)
    found = np.full(len(keys), -1, dtype=np.int64)
    if len(wanted):
        place = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
        same = (wanted[place] == keys) & (keys != 0)
        found[same] = np.flatnonzero(among)[rows][place[same]]
    return found
