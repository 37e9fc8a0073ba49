"""A row's split depends on its own place, and rows that would leak are found."""

from collections.abc import Callable, Sequence

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


@given(
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=60),
    st.sampled_from([0, 0.0, 1, 5, 0.1, 0.5]),
    st.sampled_from([0, 0.2, 3]),
    st.sampled_from(["rest", 0.25, 4]),
)
def test_splits_lie_in_the_order_of_places_have_their_sizes_and_keep_rows_of_one_intent_together(
    places: list[float], test: float, validation: float, train: float | str
) -> None:
    sizes = Split.model_validate(
        {"test": test, "validation": validation, "train": train, "near_intents": None, "seed": 0}
    )
    least = sum(part for part in (test, validation, train) if isinstance(part, int))
    no_given_test = np.zeros(len(places), dtype=bool)
    if least > len(places):
        with pytest.raises(UserError, match=f"expected {least} rows or more"):
            deal(np.array(places), no_given_test, sizes)
        return
    found = deal(np.array(places), no_given_test, sizes).tolist()
    if len(set(places)) == len(places) and isinstance(test, int):
        assert found.count(T) == test
    if train == "rest":
        assert N not in found
    pairs = sorted(zip(places, found, strict=True))
    assert len(set(pairs)) == len(set(places))
    by_place = [code for _, code in pairs]
    assert by_place == sorted(by_place, key=[T, V, N, R].index)


def leaks(
    codes: list[int],
    intents: list[int],
    contexts: list[int],
    index: Callable[[RowNumbers], NearIndex] | None = None,
    earlier: Sequence[tuple[int, int]] = (),
) -> dict[str, list[int]]:
    """What is found, for rows with these intents and contexts and, as (row, turn), these turns in their histories."""
    turns = np.array([*intents, *(turn for _, turn in earlier)], dtype=np.uint64)
    owner = np.array([*range(len(codes)), *(row for row, _ in earlier)], dtype=np.int64)
    found = find_leaks(np.array(codes, dtype=np.uint8), turns, owner, np.array(contexts, dtype=np.uint64), index)
    return {what: rows.tolist() for what, rows in found.items() if (rows >= 0).any()}


def test_a_validation_row_that_leaks_itself_takes_no_row_from_train() -> None:
    # Validation shares the intent of the test, and train the context of that validation row.
    assert leaks([T, V, R], [1, 1, 3], [0, 9, 9]) == {"intent": [-1, 0, -1]}


def test_an_earlier_turn_leaks_to_an_intent_and_an_intent_to_an_earlier_turn() -> None:
    # Rows 1 and 2 have what the test asks now, as intent or earlier turn; rows 3 and 4 what it has asked before.
    codes, intents, earlier = [T, V, R, R, R, R], [1, 1, 3, 4, 5, 6], [(0, 4), (2, 1), (4, 4), (5, 9)]
    assert leaks(codes, intents, [0] * 6, earlier=earlier) == {
        "intent": [-1, 0, -1, -1, -1, -1],
        "turn": [-1, -1, 0, 0, 0, -1],
    }


def test_the_earlier_turns_of_a_row_that_leaks_take_no_row_from_train() -> None:
    # Validation has the intent of the test; train has only the earlier turn of that validation row.
    assert leaks([T, V, R], [1, 1, 3], [0, 0, 0], earlier=[(1, 8), (2, 8)]) == {"intent": [-1, 0, -1]}


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
