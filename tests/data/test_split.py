"""Rows are dealt by their own place, and what would leak is found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from howto.core.errors import UserError
from howto.core.schema import Row
from howto.data.config import Split
from howto.data.minhash import NearIndex, Signatures
from howto.data.split import NONE, TEST, TRAIN, VALIDATION, deal, find_leaks


def split(**changes: object) -> Split:
    values = {"train": "rest", "validation": 0.1, "test": 0.1, "near_intents": None, "seed": 0}
    return Split.model_validate({**values, **changes})


def places(*values: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(values, dtype=np.float64)


def no_test(rows: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.zeros(rows, dtype=bool)


def keys(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(values, dtype=np.uint64)


def test_the_lowest_places_are_the_test_then_validation_and_train_the_rest() -> None:
    dealt = deal(places(0.0, 0.099, 0.1, 0.199, 0.2, 0.999), no_test(6), split())
    assert dealt.tolist() == [TEST, TEST, VALIDATION, VALIDATION, TRAIN, TRAIN]


def test_a_share_of_train_takes_the_highest_places_and_leaves_the_others_undealt() -> None:
    dealt = deal(places(0.05, 0.15, 0.4, 0.5, 0.9), no_test(5), split(train=0.5))
    assert dealt.tolist() == [TEST, VALIDATION, NONE, TRAIN, TRAIN]


def test_numbers_of_rows_are_met_and_rows_of_one_intent_stay_together() -> None:
    at = places(0.3, 0.1, 0.2, 0.6, 0.6, 0.8, 0.9)
    assert deal(at, no_test(7), split(test=2, validation=1, train=2)).tolist() == [
        VALIDATION,
        TEST,
        TEST,
        NONE,
        NONE,
        TRAIN,
        TRAIN,
    ]
    assert deal(at, no_test(7), split(test=3, validation=1)).tolist().count(VALIDATION) == 2


@given(
    st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=60),
    st.sampled_from([0, 0.0, 1, 5, 0.1, 0.5]),
    st.sampled_from([0, 0.2, 3]),
    st.sampled_from(["rest", 0.25, 4]),
)
def test_every_row_gets_one_split_and_parts_have_their_sizes(
    at: list[float], test: float, validation: float, train: float | str
) -> None:
    params = split(test=test, validation=validation, train=train)
    wanted = sum(part for part in (test, validation, train) if isinstance(part, int))
    if wanted > len(at):
        with pytest.raises(UserError, match=f"{wanted} rows are asked for"):
            deal(places(*at), no_test(len(at)), params)
        return
    dealt = deal(places(*at), no_test(len(at)), params)
    if len(set(at)) == len(at) and isinstance(test, int):
        assert (dealt == TEST).sum() == test
    if train == "rest":
        assert NONE not in dealt
    by_place = [code for _, code in sorted(zip(at, dealt.tolist(), strict=True))]
    order = [TEST, VALIDATION, NONE, TRAIN]
    assert by_place == sorted(by_place, key=order.index)


def test_a_given_test_is_the_test_and_no_other_row_is() -> None:
    dealt = deal(places(0.05, 0.5, 0.05, 0.15), np.array([True, True, False, False]), split())
    assert dealt.tolist() == [TEST, TEST, VALIDATION, TRAIN]


def test_a_row_that_shares_a_context_with_the_test_or_with_validation_is_a_leak() -> None:
    codes = np.array([TEST, VALIDATION, TRAIN, TRAIN, TRAIN, VALIDATION], dtype=np.uint8)
    found = find_leaks(codes, keys(1, 2, 3, 4, 5, 6), keys(7, 8, 7, 8, 0, 0), None)
    assert found["context"].tolist() == [-1, -1, 0, 1, -1, -1]
    assert (found["intent"] == -1).all() and (found["near intent"] == -1).all()


def test_a_validation_row_that_leaks_itself_takes_no_row_from_train() -> None:
    codes = np.array([TEST, VALIDATION, TRAIN], dtype=np.uint8)
    # validation shares the intent of the test, and train the context of that validation row
    found = find_leaks(codes, keys(1, 1, 3), keys(0, 9, 9), None)
    assert found["intent"].tolist() == [-1, 0, -1]
    assert (found["context"] == -1).all()


def test_rows_without_a_context_do_not_share_one() -> None:
    codes = np.array([TEST, TRAIN], dtype=np.uint8)
    found = find_leaks(codes, keys(1, 2), keys(0, 0), None)
    assert all((other == -1).all() for other in found.values())


def test_near_intents_are_looked_for_once_an_intent_and_found_for_all_its_rows() -> None:
    codes = np.array([TEST, TRAIN, TRAIN, TRAIN], dtype=np.uint8)
    compared = []

    def near(one: int, other: int) -> bool:
        compared.append((one, other))
        return True

    def index(rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> NearIndex:
        bands = np.zeros((len(rows), 2), dtype=np.uint32)
        bands[-1] = [8, 9]  # the last intent shares no bucket with the others
        return NearIndex(Signatures(bands, np.zeros((len(rows), 64), dtype=np.uint8)), 0.8, near)

    found = find_leaks(codes, keys(10, 20, 20, 30), keys(0, 0, 0, 0), index)
    assert found["near intent"].tolist() == [-1, 0, 0, -1]
    assert compared == [(1, 0)]


def test_the_intent_of_a_row_is_its_input_without_the_context() -> None:
    row = Row(id="", category="", instruction="Do.", input="What?\n\nA text.", context="A text.", output="")
    assert row.intent == "What?"
    assert row.model_copy(update={"input": "What?", "context": ""}).intent == "What?"
