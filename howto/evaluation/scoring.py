"""Score answers against references: ROUGE, steps, length, repetition, words copied from the prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from howto.core.schema import Row
from howto.core.workers import map_in_order, usable_cores
from howto.evaluation.config import Evaluate, TokenizerName
from howto.evaluation.predictions import Answers
from howto.evaluation.rouge import KINDS, Rouge, Score, Tokens
from howto.evaluation.steps import ModelSteps, RowSteps, StepMatcher, match_by_words, score_by_meaning, stack_steps

BATCH = 256  # rows that a process scores at once
PARALLEL_FROM = 4096  # answers; fewer are scored sooner than processes start
NGRAM = 4  # words
Item = tuple[
    Row, dict[str, list[str]], Mapping[str, str]
]  # row, each model's answers (one per seed), baselines' answers


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
    steps: RowSteps


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
    """What all rows score: [rows] of each baseline, and of the reference itself, which is the ceiling.

    `steps` is by model, and empty if steps were not scored.
    """

    models: dict[str, ModelScores]
    baselines: dict[str, NDArray[np.float64]]
    ceiling: NDArray[np.float64]
    reference_words: NDArray[np.int64]
    steps: dict[str, ModelSteps]


def score(
    rows: Sequence[Row],
    answers: Mapping[str, Answers],
    baselines: Sequence[Mapping[str, str]],
    *,
    use_stemmer: bool,
    tokenizer: TokenizerName = "rouge_score",
    steps: Evaluate | None = None,
) -> Scores:
    """Score each model's answers to `rows`, and the baselines' [rows], on all cores if there are many answers.

    `steps` says how steps are matched; None: they are not scored. Raise UserError if its `embedding_model` cannot be
    loaded.
    """
    items = [
        (row, {model: [answer.text for answer in of_model[number]] for model, of_model in answers.items()}, baseline)
        for number, (row, baseline) in enumerate(zip(rows, baselines, strict=True))
    ]
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    many = sum(len(of_row) for of_model in answers.values() for of_row in of_model) > PARALLEL_FROM
    threshold = steps.step_threshold if steps and not steps.embedding_model else None
    work = partial(_score_batch, use_stemmer=use_stemmer, tokenizer=tokenizer, step_threshold=threshold)
    results = chain.from_iterable(map_in_order(work, batches, usable_cores() if many else 1))
    scored = list(tqdm(results, total=len(rows), desc="score", unit="row", disable=None))
    of_rows = [row.steps for row in scored]
    if steps and steps.embedding_model:
        of_rows = score_by_meaning(
            rows, [of_row for _, of_row, _ in items], steps.embedding_model, steps.step_threshold
        )
    return Scores(
        models={model: _stack([row.answers[model] for row in scored]) for model in answers},
        baselines={name: np.array([row.baselines[name] for row in scored]) for name in baselines[0]},
        ceiling=np.array([row.ceiling for row in scored]),
        reference_words=np.array([row.reference_words for row in scored]),
        steps={model: stack_steps(of_rows, model) for model in answers} if steps else {},
    )


def _stack(rows: list[list[AnswerScores]]) -> ModelScores:
    fields = range(len(AnswerScores._fields))
    return ModelScores(*(np.array([[a[field] for a in row] for row in rows], dtype=np.float64) for field in fields))


def _score_batch(
    items: Sequence[Item], *, use_stemmer: bool, tokenizer: TokenizerName, step_threshold: float | None
) -> list[RowScores]:
    rouge = Rouge(use_stemmer=use_stemmer, tokenizer=tokenizer)
    matcher = None if step_threshold is None else match_by_words(rouge, step_threshold)
    return [_score_row(rouge, matcher, *item) for item in items]


def _score_row(
    rouge: Rouge,
    matcher: StepMatcher[Tokens] | None,
    row: Row,
    answers: dict[str, list[str]],
    baselines: Mapping[str, str],
) -> RowScores:
    references = [rouge.tokens(text) for text in (row.output, *row.references)]
    prompt = rouge.tokens(row.input)

    def score_answer(text: str) -> AnswerScores:
        answer = rouge.tokens(text)
        by_kind = rouge.score(references, answer)
        shares = repeated_share(answer.words), copied_share(answer.words, prompt.words)
        return AnswerScores([by_kind[kind] for kind in KINDS], len(answer.words), *shares)

    def rouge_l(text: str) -> float:
        answer = rouge.tokens(text)
        return max(rouge.rouge_l(reference, answer).fmeasure for reference in references)

    return RowScores(
        {model: [score_answer(text) for text in texts] for model, texts in answers.items()},
        {name: rouge_l(text) for name, text in baselines.items()},
        rouge_l(row.output),
        len(references[0].words),
        matcher.score_row(row, answers) if matcher else None,
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
