"""A row's split depends on its own place, and rows that would leak are found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from howto.core.errors import UserError
from howto.data.arrays import RowNumbers
from howto.data.config import Split
from howto.data.minhash import NearIndex
from howto.data.split import NONE, TEST, TRAIN, VALIDATION, deal, find_leaks

T, V, R, N = TEST, VALIDATION, TRAIN, NONE


def split(places: list[float], given_test: tuple[bool, ...] = (), **changes: object) -> list[int]:
    values = {"train": "rest", "validation": 0.1, "test": 0.1, "near_intents": None, "seed": 0, **changes}
    mask = np.array(given_test or [False] * len(places))
    found: list[int] = deal(np.array(places, dtype=np.float64), mask, Split.model_validate(values)).tolist()
    return found


def test_the_lowest_places_are_the_test_then_validation_and_the_highest_are_train() -> None:
    assert split([0.0, 0.099, 0.1, 0.199, 0.2, 0.999]) == [T, T, V, V, R, R]
    assert split([0.05, 0.15, 0.4, 0.5, 0.9], train=0.5) == [T, V, N, R, R]


def test_numbers_of_rows_are_met_and_rows_of_one_intent_stay_together() -> None:
    places = [0.3, 0.1, 0.2, 0.6, 0.6, 0.8, 0.9]
    assert split(places, test=2, validation=1, train=2) == [V, T, T, N, N, R, R]
    assert split(places, test=3, validation=1).count(V) == 2


def test_a_given_test_is_the_test_and_no_other_row_is() -> None:
    assert split([0.05, 0.5, 0.05, 0.15], (True, True, False, False)) == [T, T, V, R]


@given(
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=60),
    st.sampled_from([0, 0.0, 1, 5, 0.1, 0.5]),
    st.sampled_from([0, 0.2, 3]),
    st.sampled_from(["rest", 0.25, 4]),
)
def test_every_row_gets_one_split_and_parts_have_their_sizes(
    places: list[float], test: float, validation: float, train: float | str
) -> None:
    sizes = {"test": test, "validation": validation, "train": train}
    least = sum(part for part in sizes.values() if isinstance(part, int))
    if least > len(places):
        with pytest.raises(UserError, match=f"expected {least} rows or more"):
            split(places, (), **sizes)
        return
    found = split(places, (), **sizes)
    if len(set(places)) == len(places) and isinstance(test, int):
        assert found.count(T) == test
    if train == "rest":
        assert N not in found
    by_place = [code for _, code in sorted(zip(places, found, strict=True))]
    assert by_place == sorted(by_place, key=[T, V, N, R].index)


def leaks(
    codes: list[int], intents: list[int], contexts: list[int], index: Callable[[RowNumbers], NearIndex] | None = None
) -> dict[str, list[int]]:
    hashes = [np.array(keys, dtype=np.uint64) for keys in (intents, contexts)]
    found = find_leaks(np.array(codes, dtype=np.uint8), hashes[0], hashes[1], index)
    return {what: rows.tolist() for what, rows in found.items() if (rows >= 0).any()}


def test_a_row_that_shares_a_context_with_the_test_or_with_validation_is_a_leak() -> None:
    found = leaks([T, V, R, R, R, V], [1, 2, 3, 4, 5, 6], [7, 8, 7, 8, 0, 0])  # 0: no context
    assert found == {"context": [-1, -1, 0, 1, -1, -1]}


def test_a_validation_row_that_leaks_itself_takes_no_row_from_train() -> None:
    # Validation shares the intent of the test, and train the context of that validation row.
    assert leaks([T, V, R], [1, 1, 3], [0, 9, 9]) == {"intent": [-1, 0, -1]}


def test_near_intents_are_looked_for_once_an_intent_and_a_row_that_leaks_takes_none_from_train() -> None:
    compared = []

    def is_near(one: int, other: int) -> bool:
        compared.append((one, other))
        return one - other == 1

    def index(rows: RowNumbers) -> NearIndex:
        bands = np.zeros((len(rows), 2), dtype=np.uint32)
        bands[-1] = [8, 9]  # the last intent shares no bucket with the others
        return NearIndex(bands, np.zeros((len(rows), 64), dtype=np.uint8), 0.8, is_near)

    found = leaks([T, V, V, R, R], [10, 20, 20, 30, 40], [0, 0, 0, 0, 0], index)
    assert found == {"near intent": [-1, 0, 0, -1, -1]}
    assert compared == [(1, 0), (2, 0)]
