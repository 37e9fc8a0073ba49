"""Measure an answer's steps against the reference's: which are there, in what order, and which are too many.

Steps are matched one to one, so that the total similarity of the matched pairs is greatest (the assignment problem,
Kuhn 1955, doi.org/10.1002/nav.3800020109). A pair that is less similar than a threshold is not matched.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from howto.core.schema import Row
from howto.core.step_lists import NUMBER, is_numbered
from howto.evaluation.embeddings import encode
from howto.evaluation.rouge import Rouge

MEASURES = ("coverage", "order", "superfluous")
# A step ends as in Markdown: at a line without indentation that follows a blank line.
END = re.compile(r"\n[^\S\n]*\n(?=\S)")
TIE = 1e-9  # similarity that a step's distance from the other's place costs

T = TypeVar("T")


class Step(NamedTuple):
    """A numbered line and the lines that belong to it, without the number."""

    line: int  # of the text, from 1
    text: str


class StepScores(NamedTuple):
    """What one answer scores against the reference that it fits best."""

    coverage: float  # share of the reference's steps that are matched; 0 for an answer without steps
    order: float | None  # Kendall's tau of the matched steps; None: fewer than two are matched
    superfluous: float | None  # share of the answer's steps that are not matched; None: the answer has no steps
    reference: int  # the row's number of that reference, from 0
    matches: tuple[tuple[int, int | None], ...]  # of each step of the answer: its line, and the matched step, from 1


RowSteps = dict[str, list[StepScores]] | None  # each model's answers, one per seed; None: the reference is no list


@dataclass(frozen=True)
class ModelSteps:
    """What all answers of one model score: by the names of MEASURES, and of each row's first answer."""

    values: Mapping[str, NDArray[np.float64]]  # [rows], means over the seeds; NaN: no answer has a value
    first: Sequence[StepScores | None]  # [rows]


def split_steps(text: str) -> list[Step]:
    """Return the numbered steps of a text. Other text before, between and after them is left out."""
    found = [*NUMBER.finditer(text)]
    ends = [*(match.start() for match in found[1:]), len(text)]
    return [
        Step(text.count("\n", 0, match.start()) + 1, END.split(text[match.end() - 1 : end], maxsplit=1)[0].rstrip())
        for match, end in zip(found, ends, strict=False)
    ]


def match_steps(similarity: NDArray[np.float64], threshold: float) -> list[tuple[int, int]]:
    """Return the matched pairs of `similarity` [reference's steps, answer's steps], in the reference's order.

    Among equal steps, the one nearest to the other's place is matched.
    """
    from scipy.optimize import linear_sum_assignment

    similar = np.where(similarity >= threshold, similarity, 0.0)
    if not similar.any():
        return []
    away = np.abs(np.subtract.outer(*map(np.arange, similar.shape)))
    pairs = zip(*linear_sum_assignment(np.where(similar, similar - TIE * away, 0.0), maximize=True), strict=True)
    return [(int(one), int(other)) for one, other in pairs if similar[one, other]]


def kendall_tau(places: Sequence[int]) -> float | None:
    """Return how far `places` ascend, from 1 (all) to -1 (all descend), or None for fewer than two.

    It is Kendall's tau-a (1938, doi.org/10.1093/biomet/30.1-2.81): the pairs in order less those in reverse order, as a
    share of all pairs. Places are different, so tau-b is the same.
    """
    signs = [1 if one < other else -1 for one, other in combinations(places, 2)]
    return sum(signs) / len(signs) if signs else None


class StepMatcher(Generic[T]):
    """Scores answers by their steps. `prepare` makes of a step what `compare` needs for [references, answers]."""

    def __init__(
        self,
        prepare: Callable[[str], T],
        compare: Callable[[Sequence[T], Sequence[T]], NDArray[Any]],
        threshold: float,
    ) -> None:
        self._prepare, self._compare, self._threshold = prepare, compare, threshold

    def score_row(self, row: Row, answers: Mapping[str, Sequence[str]]) -> RowSteps:
        """Return what each answer scores, or None if the reference is no numbered list.

        Of several references that are, an answer's is the one for which the matched steps are the largest share of the
        steps of both; of equal ones the first.
        """
        if not is_numbered(row.output):
            return None
        every = enumerate((row.output, *row.references))
        references = [(number, self._steps(split_steps(text))) for number, text in every if is_numbered(text)]
        return {model: [self._score(references, text) for text in texts] for model, texts in answers.items()}

    def _steps(self, steps: Iterable[Step]) -> list[T]:
        return [self._prepare(step.text) for step in steps]

    def _score(self, references: Sequence[tuple[int, list[T]]], text: str) -> StepScores:
        steps = split_steps(text)
        if not steps:
            return StepScores(0.0, None, None, 0, ())
        own = self._steps(steps)
        every = [(number, of, match_steps(self._compare(of, own), self._threshold)) for number, of in references]
        number, of, pairs = max(every, key=lambda one: len(one[2]) / (len(one[1]) + len(own)))
        step_of = {place: step + 1 for step, place in pairs}
        return StepScores(
            coverage=len(pairs) / len(of),
            order=kendall_tau([place for _, place in pairs]),
            superfluous=1 - len(pairs) / len(own),
            reference=number,
            matches=tuple((step.line, step_of.get(place)) for place, step in enumerate(steps)),
        )


def match_by_words(rouge: Rouge, threshold: float) -> StepMatcher[Any]:
    """Return a matcher for which the similarity of two steps is the F of ROUGE-L."""
    return StepMatcher(
        rouge.tokens,
        lambda references, own: np.array([[rouge.rouge_l(one, step).fmeasure for step in own] for one in references]),
        threshold,
    )


def match_by_meaning(model: str, texts: Iterable[str], threshold: float) -> StepMatcher[Any]:
    """Return a matcher for the steps of `texts`, for which similarity is the cosine of their embeddings.

    Raises as `encode`.
    """
    steps = [*dict.fromkeys(step.text for text in texts for step in split_steps(text))]
    vectors = dict(zip(steps, encode(model, steps), strict=True))
    return StepMatcher(vectors.__getitem__, lambda references, own: np.array(references) @ np.array(own).T, threshold)


def score_by_meaning(
    rows: Sequence[Row], answers: Sequence[Mapping[str, Sequence[str]]], model: str, threshold: float
) -> list[RowSteps]:
    """Return what each row's answers score by an embedding model. Raises as `encode`."""
    references = (text for row in rows for text in (row.output, *row.references))
    matcher = match_by_meaning(
        model, [*references, *chain.from_iterable(chain(*of.values()) for of in answers)], threshold
    )
    return [matcher.score_row(row, of_row) for row, of_row in zip(rows, answers, strict=True)]


def stack_steps(rows: Sequence[RowSteps], model: str) -> ModelSteps:
    """Return what all answers of one model score."""
    of_model = [row[model] if row else [] for row in rows]

    def mean(values: Iterable[float | None]) -> float:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else float("nan")

    return ModelSteps(
        {name: np.array([mean(getattr(one, name) for one in row) for row in of_model]) for name in MEASURES},
        [row[0] if row else None for row in of_model],
    )
