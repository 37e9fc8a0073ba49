"""Numbered steps in an answer."""

from __future__ import annotations

import re

NUMBER = re.compile(r"^\s*(\d+)[.)]\s+\S", re.MULTILINE)


def step_numbers(text: str) -> list[int]:
    """The numbers at the beginnings of lines, in order: [1, 2, 3] for a list of three steps."""
    return [int(match[1]) for match in NUMBER.finditer(text)]


def is_procedural(reference: str) -> bool:
    """Whether a reference is a list of at least two numbered steps, and so its intent asks for steps."""
    return len(step_numbers(reference)) >= 2 and is_well_numbered(reference)


def is_well_numbered(text: str) -> bool:
    """Whether the steps of an answer are numbered 1 to n without a gap, with at least one step and no other line."""
    numbers = step_numbers(text)
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(numbers) and numbers == list(range(1, len(lines) + 1))
