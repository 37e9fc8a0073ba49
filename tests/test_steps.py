"""What counts as a list of numbered steps."""

from __future__ import annotations

import pytest

from howto.steps import is_procedural, is_well_numbered, step_numbers


@pytest.mark.parametrize(
    ("text", "well"),
    [
        ("1. Go.\n2. Stop.", True),
        ("1) Go.\n2) Stop.", True),
        ("1. Go.\n\n2. Stop.", True),
        ("1. Go.\n3. Stop.", False),
        ("2. Go.\n3. Stop.", False),
        ("1. Go.\n1. Stop.", False),
        ("First:\n1. Go.\n2. Stop.", False),
        ("1. Go.\n2. Stop.\nDone.", False),
        ("Go, then stop.", False),
        ("", False),
        ("1.", False),
    ],
)
def test_only_a_list_from_1_to_n_without_a_gap_is_well_numbered(text: str, well: bool) -> None:
    assert is_well_numbered(text) is well


def test_a_reference_of_one_step_or_of_prose_is_not_procedural() -> None:
    assert is_procedural("1. Go.\n2. Stop.")
    assert not is_procedural("1. Go.")
    assert not is_procedural("In 1990. It was.\n2. no")


def test_numbers_inside_a_line_are_no_steps() -> None:
    assert step_numbers("1. Take 2. eggs\n2. Fry") == [1, 2]
