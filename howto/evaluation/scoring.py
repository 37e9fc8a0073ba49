"""Score answers against references: ROUGE, length, repetition, words copied from the prompt, similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from howto.core.errors import UserError
from howto.core.workers import map_in_order, usable_cores
from howto.evaluation.rouge import KINDS, Rouge, Score

BATCH = 256  # rows that a process scores at once
PARALLEL_FROM = 4096  # answers; fewer are scored sooner than processes start
NGRAM = 4  # words


class RowTexts(NamedTuple):
    """One row: its references, its prompt, and everything that is scored against the references."""

    references: tuple[str, ...]
    prompt: str
    answers: dict[str, list[str]]  # of each model, one per seed
    baselines: dict[str, str]


class AnswerScores(NamedTuple):
    """What one answer scores. Both shares are None for an answer of fewer than four words."""

    rouge: list[Score]  # [kinds]
    words: int
    repeated: float | None
    copied: float | None


class RowScores(NamedTuple):
    """What everything in one row scores; a baseline and the ceiling by F of ROUGE-L."""

    answers: dict[str, list[AnswerScores]]
    baselines: dict[str, float]
    ceiling: float
    reference_words: int


@dataclass(frozen=True)
class ModelScores:
    """What all answers of one model score. A share is NaN where an answer has none."""

    rouge: NDArray[np.float64]  # [rows, seeds, kinds, 3]: precision, recall, F
    words: NDArray[np.float64]  # [rows, seeds]
    repeated: NDArray[np.float64]  # [rows, seeds]
    copied: NDArray[np.float64]  # [rows, seeds]

    @property
    def rouge_l(self) -> NDArray[np.float64]:
        """F of ROUGE-L, [rows, seeds]."""
        return self.rouge[:, :, KINDS.index("rougeL"), 2]

    @property
    def row_means(self) -> NDArray[np.float64]:
        """F of ROUGE-L, [rows], the mean over the seeds."""
        means: NDArray[np.float64] = self.rouge_l.mean(axis=1)
        return means


@dataclass(frozen=True)
class Scores:
    """What all rows score: [rows] of each baseline, and of the reference itself, which is the ceiling."""

    models: dict[str, ModelScores]
    baselines: dict[str, NDArray[np.float64]]
    ceiling: NDArray[np.float64]
    reference_words: NDArray[np.int64]


def score(rows: Sequence[RowTexts], *, use_stemmer: bool) -> Scores:
    """Score all rows, on all cores if there are many answers."""
    batches = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    answers = sum(len(of_model) for row in rows for of_model in row.answers.values())
    processes = usable_cores() if answers > PARALLEL_FROM else 1
    results = chain.from_iterable(map_in_order(partial(_score_batch, use_stemmer=use_stemmer), batches, processes))
    scored = list(tqdm(results, total=len(rows), desc="score", unit="row", disable=None))
    return Scores(
        models={model: _stack([row.answers[model] for row in scored]) for model in rows[0].answers},
        baselines={name: np.array([row.baselines[name] for row in scored]) for name in rows[0].baselines},
        ceiling=np.array([row.ceiling for row in scored]),
        reference_words=np.array([row.reference_words for row in scored]),
    )


def _stack(rows: list[list[AnswerScores]]) -> ModelScores:
    fields = range(len(AnswerScores._fields))
    return ModelScores(*(np.array([[a[field] for a in row] for row in rows], dtype=np.float64) for field in fields))


def _score_batch(rows: Sequence[RowTexts], *, use_stemmer: bool) -> list[RowScores]:
    rouge = Rouge(use_stemmer=use_stemmer)
    return [score_row(rouge, row) for row in rows]


def score_row(rouge: Rouge, row: RowTexts) -> RowScores:
    """Score everything in one row."""
    references, prompt = [rouge.tokens(text) for text in row.references], rouge.tokens(row.prompt)

    def score_answer(text: str) -> AnswerScores:
        answer = rouge.tokens(text)
        by_kind = rouge.score(references, answer)
        shares = repeated_share(answer.words), copied_share(answer.words, prompt.words)
        return AnswerScores([by_kind[kind] for kind in KINDS], len(answer.words), *shares)

    def rouge_l(text: str) -> float:
        answer = rouge.tokens(text)
        return max(rouge.rouge_l(reference, answer).fmeasure for reference in references)

    return RowScores(
        {model: [score_answer(text) for text in texts] for model, texts in row.answers.items()},
        {name: rouge_l(text) for name, text in row.baselines.items()},
        rouge_l(row.references[0]),
        len(references[0].words),
    )


def repeated_share(words: Sequence[str]) -> float | None:
    """Return the share of 4-grams that occurred earlier in the text (rep-4, Welleck et al. 2020, arXiv:1908.04319)."""
    ngrams = _ngrams(words)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else None


def copied_share(words: Sequence[str], prompt: Sequence[str]) -> float | None:
    """Return the share of 4-grams that occur in the prompt too."""
    ngrams, in_prompt = _ngrams(words), set(_ngrams(prompt))
    return sum(ngram in in_prompt for ngram in ngrams) / len(ngrams) if ngrams else None


def _ngrams(words: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(NGRAM)), strict=False))


def similarities(model: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the cosine of each pair's sentence embeddings, -1..1 (Reimers and Gurevych 2019, arXiv:1908.10084).

    `model` is a folder of sentence-transformers, or a hub id.

    Raises:
        UserError: the package is not installed, or there is no such model.
    """
    key = "params.yaml: evaluate.embedding_model"
    try:
        from sentence_transformers import SentenceTransformer, util
    except ImportError:
        raise UserError(f"{key}: needs a package. Run `pip install sentence-transformers`, or set null.") from None
    try:
        encoder = SentenceTransformer(model, device="cpu", trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"{key}: {model} cannot be loaded ({first[:120]}). Name a folder or a hub id.") from None
    texts = list({text for pair in pairs for text in pair})
    number_of = {text: number for number, text in enumerate(texts)}
    vectors = encoder.encode(texts, convert_to_tensor=True, show_progress_bar=None)
    references, answers = ([number_of[pair[side]] for pair in pairs] for side in (0, 1))
    return [float(cosine) for cosine in util.pairwise_cos_sim(vectors[references], vectors[answers])]
