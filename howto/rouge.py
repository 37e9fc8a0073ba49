"""ROUGE-L of generated answers, by Google's `rouge-score` package (Lin 2004, aclanthology.org/W04-1013)."""

from __future__ import annotations

from rouge_score import rouge_scorer


class RougeL:
    """Scores answers against references; `use_stemmer` compares word stems (Porter) in place of words."""

    def __init__(self, *, use_stemmer: bool) -> None:
        self._scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=use_stemmer)

    def __call__(self, reference: str, answer: str) -> float:
        """F-measure in 0..1 of the longest common subsequence of words; 0 for an empty answer."""
        return float(self._scorer.score(reference, answer)["rougeL"].fmeasure)
