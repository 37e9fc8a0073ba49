"""Every row's answers, scored: by both models, and by those who know nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from howto.core.workers import map_in_order, usable_cores
from howto.evaluation.repetition import copied_share, repeated_share
from howto.evaluation.rouge import KINDS, Rouge, Score, Tokens

PART = 256  # rows that a process scores at once
FEW = 4096  # answers that are scored sooner than other processes have started


class Texts(NamedTuple):
    """A row as it is scored."""

    references: tuple[str, ...]  # the first one's length is that of the reference
    prompt: str
    answers: tuple[str, ...]  # of both models and all seeds
    floors: tuple[str, ...]


class Scored(NamedTuple):
    """The numbers of a row: of each answer and of each floor."""

    rouge: list[list[Score]]  # [answers][kinds]
    repeated: list[float | None]  # [answers]
    copied: list[float | None]
    words: list[int]
    reference_words: int
    floors: list[float]  # [floors]: F of ROUGE-L


@dataclass(frozen=True)
class Scores:
    """The numbers of all rows; shares that an answer does not have are NaN."""

    rouge: NDArray[np.float64]  # [rows, answers, kinds, 3]
    repeated: NDArray[np.float64]  # [rows, answers]
    copied: NDArray[np.float64]
    words: NDArray[np.int64]
    reference_words: NDArray[np.int64]  # [rows]
    floors: NDArray[np.float64]  # [rows, floors]

    @property
    def rouge_l(self) -> NDArray[np.float64]:
        """F of ROUGE-L, [rows, answers]."""
        return self.rouge[:, :, KINDS.index("rougeL"), 2]


def score(texts: Sequence[Texts], *, use_stemmer: bool) -> Scores:
    """Score all rows, on all cores if there are many."""
    parts = [texts[start : start + PART] for start in range(0, len(texts), PART)]
    many = sum(len(row.answers) for row in texts) > FEW
    work = partial(score_part, use_stemmer=use_stemmer)
    rows: list[Scored] = []
    with tqdm(total=len(texts), desc="score", unit="row", disable=None) as progress:
        for part in map_in_order(work, parts, usable_cores() if many else 1):
            rows += part
            progress.update(len(part))
    return Scores(
        np.array([row.rouge for row in rows], dtype=np.float64),
        np.array([row.repeated for row in rows], dtype=np.float64),
        np.array([row.copied for row in rows], dtype=np.float64),
        np.array([row.words for row in rows]),
        np.array([row.reference_words for row in rows]),
        np.array([row.floors for row in rows], dtype=np.float64),
    )


def score_part(texts: Sequence[Texts], *, use_stemmer: bool) -> list[Scored]:
    """The numbers of some rows."""
    rouge = _rouge(use_stemmer)
    found = []
    for row in texts:
        references, prompt = [rouge.tokens(text) for text in row.references], rouge.tokens(row.prompt)
        answers = [rouge.tokens(answer) for answer in row.answers]
        scores = [rouge.score(references, answer) for answer in answers]
        found.append(
            Scored(
                [[of_answer[kind] for kind in KINDS] for of_answer in scores],
                [repeated_share(answer.words) for answer in answers],
                [copied_share(answer.words, prompt.words) for answer in answers],
                [len(answer.words) for answer in answers],
                len(references[0].words),
                [rouge_l(rouge, references, rouge.tokens(floor)) for floor in row.floors],
            )
        )
    return found


def rouge_l(rouge: Rouge, references: Sequence[Tokens], answer: Tokens) -> float:
    """F of ROUGE-L against the best of the references."""
    return max(rouge.rouge_l(reference, answer).fmeasure for reference in references)


@cache
def _rouge(use_stemmer: bool) -> Rouge:
    return Rouge(use_stemmer=use_stemmer)
