"""What can be seen of an answer without a reference: whether it repeats itself, and whether it copies its prompt."""

from __future__ import annotations

from collections.abc import Sequence

GRAM = 4  # words


def repeated_share(words: Sequence[str]) -> float | None:
    """Share of the runs of four words that stood in the text before (rep-4, Welleck et al. 2020, arXiv:1908.04319).

    None for a text of fewer words.
    """
    runs = _runs(words)
    return 1 - len(set(runs)) / len(runs) if runs else None


def copied_share(words: Sequence[str], prompt: Sequence[str]) -> float | None:
    """Share of the runs of four words that stand in the prompt too; None for a text of fewer words."""
    runs = _runs(words)
    known = set(_runs(prompt))
    return sum(run in known for run in runs) / len(runs) if runs else None


def _runs(words: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(GRAM)), strict=False))
