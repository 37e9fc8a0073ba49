"""Repeats and copies, counted by hand. A word is a letter here."""

from __future__ import annotations

import pytest

from howto.evaluation.repetition import copied_share, repeated_share


def test_repeated_runs_are_those_that_stood_there_before() -> None:
    assert repeated_share("abcdef") == 0
    assert repeated_share("aaaaaa") == pytest.approx(2 / 3)  # three runs of four, one of them new
    assert repeated_share("abcdabcd") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert repeated_share("abc") is None


def test_copied_runs_are_those_of_the_prompt() -> None:
    assert copied_share("abcde", "xabcdy") == 1 / 2  # abcd is there, bcde is not
    assert copied_share("abcd", "abc") == 0
    assert copied_share("ab", "ab") is None
