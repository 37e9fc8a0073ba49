"""Cleaning keeps what a row says; the split leaks nothing and moves no row."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from howto.cleaning import clean, normal_key
from howto.params.prepare import Prepare
from howto.rows import Row
from howto.split import deal

PARAMS = Prepare(instruction="Do.", validation_share=0.1, test_share=0.1, split_seed=0)


@pytest.mark.parametrize(
    ("dirty", "cleaned"),
    [
        ("  a\u00a0b  c ", "a b c"),
        ("a\r\nb\r\n\r\n\r\nc", "a\nb\n\nc"),
        ("a\u200bb", "ab"),
        ("e\u0301", "\u00e9"),
        ("The islands.[2] Geelong[12][3] is", "The islands. Geelong is"),
        ("ends with a mark.[7]", "ends with a mark."),
        ("take items[0].name", "take items[0].name"),
        ("the interval [3, 4] and [5]", "the interval [3, 4] and [5]"),
        ("in [2019] it", "in [2019] it"),
        ("def f():\n    return 1", "def f():\n    return 1"),
    ],
)
def test_clean_takes_dirt_away_and_leaves_text(dirty: str, cleaned: str) -> None:
    assert clean(dirty, marks=True) == cleaned


@given(st.text())
def test_clean_is_idempotent(text: str) -> None:
    once = clean(text, marks=True)
    assert clean(once, marks=True) == once


def row(intent: str, context: str = "") -> Row:
    text = f"{intent}\n\n{context}" if context else intent
    return Row(id="0", category="c", instruction="Do.", input=text, context=context, output="o")


ROWS = [
    row(f"How do I do job {number % 300}?", f"Context {number % 170}." if number % 3 else "") for number in range(600)
]


def test_no_intent_and_no_context_of_one_split_is_in_another() -> None:
    splits = deal(ROWS, PARAMS)
    assert set(splits) <= {"train", "validation", "test"} and len(set(splits)) > 1
    for part in ("intent", "context"):
        seen: dict[str, str] = {}
        for r, split in zip(ROWS, splits, strict=True):
            if key := normal_key(getattr(r, part)):
                assert seen.setdefault(key, split) == split


def test_intents_that_differ_in_case_and_punctuation_share_a_split() -> None:
    for number in range(50):
        assert len(set(deal([row(f"How do I fix {number}?"), row(f"how do i FIX {number}!")], PARAMS))) == 1


def test_the_order_of_rows_changes_no_rows_split() -> None:
    order = list(range(len(ROWS)))
    random.Random(1).shuffle(order)
    splits = deal(ROWS, PARAMS)
    assert deal([ROWS[number] for number in order], PARAMS) == [splits[number] for number in order]


def test_added_rows_of_other_groups_move_no_row() -> None:
    more = [row(f"Another intent {number}") for number in range(200)]
    assert deal(ROWS + more, PARAMS)[: len(ROWS)] == deal(ROWS, PARAMS)


def test_shares_are_right_within_sampling_error() -> None:
    splits = deal([row(f"Intent {number}") for number in range(5000)], PARAMS)
    assert abs(splits.count("test") / 5000 - 0.1) < 4 * (0.09 / 5000) ** 0.5
    assert abs(splits.count("validation") / 5000 - 0.1) < 4 * (0.09 / 5000) ** 0.5


def test_another_seed_deals_otherwise() -> None:
    assert deal(ROWS, PARAMS) != deal(ROWS, PARAMS.model_copy(update={"split_seed": 1}))


def test_the_intent_of_a_row_is_its_input_without_the_context() -> None:
    assert row("What?", "A text.").intent == "What?"
    assert row("What?").intent == "What?"
