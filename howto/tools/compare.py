"""`howto compare REV`: is one version better than another, worse, or is there no difference that the rows can show?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from howto.core.atomic import write_json
from howto.core.config import Params
from howto.core.errors import UserError
from howto.core.schema import Prediction, Row
from howto.core.step_lists import is_numbered, is_well_numbered
from howto.evaluation.config import Evaluate
from howto.evaluation.rouge import KINDS
from howto.evaluation.scoring import Texts, score
from howto.evaluation.significance import bootstrap_interval, permutation_p_value
from howto.tools.ask import check_output
from howto.tools.revision import Version, capital, revision, working_tree

SHOWN = ("rouge1", "rouge2", "rougeL")
OFTEN = 0.8  # the share of comparisons that is meant by "four times in five"


@dataclass(frozen=True)
class Side:
    """One version's fine-tuned model on the rows that both have; ROUGE as mean F over rows, shares in 0..1."""

    name: str
    commit: str | None  # None: the working tree
    profile: str
    rows_alone: int  # test rows that the other version lacks, or has otherwise
    seeds: int
    rouge: dict[str, float]
    interval: tuple[float, float]  # of ROUGE-L
    ended_by_eos: float
    well_numbered: float | None  # of the rows whose reference is a numbered list
    validation_loss: float | None


@dataclass(frozen=True)
class Pair:
    """A row that both versions answered; with several seeds the answers are the first ones, the scores the means.

    The one that is compared with, `against`, comes first.
    """

    id: str
    intent: str
    answers: tuple[str, str]
    rouge_l: tuple[float, float]

    @property
    def gain(self) -> float:
        """How much better the second answer is."""
        return self.rouge_l[1] - self.rouge_l[0]


@dataclass(frozen=True)
class Comparison:
    """What is known of two versions. Differences are those of `of` less `against`; so are wins and losses."""

    against: Side
    of: Side
    rows: int
    rouge: dict[str, float]  # differences
    interval: tuple[float, float]  # of the difference in ROUGE-L
    confidence: float
    p_value: float
    wins: int
    ties: int
    losses: int
    other_answers: int  # rows that the fine-tuned models answer otherwise
    other_base_answers: int  # rows that the base models answer otherwise
    params: dict[str, tuple[Any, Any]]  # those in force that differ
    files: dict[str, tuple[str | None, str | None]]  # hashes of what the answers are made of, where they differ
    pairs: list[Pair]

    @property
    def half_width(self) -> float:
        """Of the interval: a true difference as large as this shows in about half of such comparisons."""
        return (self.interval[1] - self.interval[0]) / 2

    @property
    def shows_often(self) -> float:
        """The difference that shows in four of five such comparisons, as far as means of rows are normal."""
        normal = NormalDist()
        beyond = normal.inv_cdf(0.5 + self.confidence / 2)
        return self.half_width * (beyond + normal.inv_cdf(OFTEN)) / beyond


def print_against(params: Params, against: str, of: str | None, answers: int, json: Path | None) -> None:
    """Compare the fine-tuned model of `of` (None: the working tree) with that of the revision `against`.

    Raises:
        UserError: a version cannot be had, or the two have no row in common.
    """
    from howto.tools.compare_table import print_comparison

    if json:
        check_output(json)
    found = compare(revision(against), working_tree() if of is None else revision(of), params.section(Evaluate))
    print_comparison(found, [verdict(found), sensitivity(found)], answers)
    if json:
        write_json(json, {"verdict": verdict(found), **asdict(found)})


def compare(against: Version, of: Version, params: Evaluate) -> Comparison:
    """Score both versions' answers with this code and these params, row by row.

    Raises:
        UserError: no row is in both.
    """
    places = common_rows(against.rows, of.rows)
    if not places:
        raise UserError(
            f"{against.name} has {len(against.rows)} test rows, {of.name} has {len(of.rows)}, and none is in both: "
            "there is nothing to compare"
        )
    rows = [of.rows[place] for _, place in places]
    before, after = (_answers(version, "adapter", places, side) for side, version in enumerate((against, of)))
    bases = [_answers(version, "base", places, side) for side, version in enumerate((against, of))]
    scores = score_all(rows, before, after, use_stemmer=params.use_stemmer)
    differences = scores[1] - scores[0]
    of_rouge_l = differences[:, KINDS.index("rougeL")]
    means = [side[:, KINDS.index("rougeL")] for side in scores]
    return Comparison(
        against=_side(against, rows, before, scores[0], params),
        of=_side(of, rows, after, scores[1], params),
        rows=len(rows),
        rouge=_means(differences),
        interval=_interval(of_rouge_l, params),
        confidence=params.confidence,
        p_value=round(permutation_p_value(of_rouge_l, resamples=params.resamples, seed=params.seed), 6),
        wins=int((of_rouge_l > 0).sum()),
        ties=int((of_rouge_l == 0).sum()),
        losses=int((of_rouge_l < 0).sum()),
        other_answers=_otherwise(before, after),
        other_base_answers=_otherwise(*bases),
        params=differing_params(against.params, of.params),
        files={
            path: (against.inputs.get(path), of.inputs.get(path))
            for path in sorted(against.inputs.keys() | of.inputs.keys())
            if against.inputs.get(path) != of.inputs.get(path)
        },
        pairs=[
            Pair(row.id, row.intent, (first[0].text, second[0].text), (float(low), float(high)))
            for row, first, second, low, high in zip(rows, before, after, *means, strict=True)
        ],
    )


def common_rows(against: Sequence[Row], of: Sequence[Row]) -> list[tuple[int, int]]:
    """(place in the one, place in the other) of rows that ask for the same and have the same references."""
    place = {row.id: number for number, row in enumerate(against)}
    return [
        (place[row.id], number)
        for number, row in enumerate(of)
        if row.id in place and _asked_and_scored(against[place[row.id]]) == _asked_and_scored(row)
    ]


def _asked_and_scored(row: Row) -> tuple[str, str, str, tuple[str, ...]]:
    return row.input, row.context, row.output, row.references


def _answers(version: Version, model: str, places: list[tuple[int, int]], side: int) -> list[list[Prediction]]:
    """[rows][seeds] of the rows that both have."""
    return [version.predictions[model][pair[side]] for pair in places]


def score_all(
    rows: Sequence[Row], before: list[list[Prediction]], after: list[list[Prediction]], *, use_stemmer: bool
) -> list[NDArray[np.float64]]:
    """F of ROUGE of both sides, [rows, kinds] each, the mean over a row's seeds, of which each side has its own."""
    texts = [
        Texts((row.output, *row.references), row.input, tuple(answer.text for answer in (*first, *second)), ())
        for row, first, second in zip(rows, before, after, strict=True)
    ]
    measured = score(texts, use_stemmer=use_stemmer).rouge[..., 2]  # [rows, answers, kinds]
    seeds = len(before[0])
    return [measured[:, :seeds].mean(axis=1), measured[:, seeds:].mean(axis=1)]


def differing_params(against: dict[str, Any], of: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The params in force that differ; the active profile's stand under `profiles.<profile>`, whichever it is.

    None is also for a param that the version does not have.
    """
    from dvc.utils.flatten import flatten

    one, other = (flatten(_in_force(params)) for params in (against, of))
    keys = [*other, *(key for key in one if key not in other)]
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def _in_force(params: dict[str, Any]) -> dict[str, Any]:
    return {**params, "profiles": {"<profile>": (params.get("profiles") or {}).get(params.get("profile")) or {}}}


def _side(
    version: Version, rows: list[Row], answers: list[list[Prediction]], scores: NDArray[np.float64], params: Evaluate
) -> Side:
    numbered = [
        is_well_numbered(answer.text)
        for row, of_row in zip(rows, answers, strict=True)
        if is_numbered(row.output)
        for answer in of_row
    ]
    return Side(
        name=version.name,
        commit=version.commit,
        profile=str(version.params.get("profile")),
        rows_alone=len(version.rows) - len(rows),
        seeds=len(answers[0]),
        rouge=_means(scores),
        interval=_interval(scores[:, KINDS.index("rougeL")], params),
        ended_by_eos=round(float(np.mean([answer.stop == "eos" for of_row in answers for answer in of_row])), 6),
        well_numbered=round(float(np.mean(numbered)), 6) if numbered else None,
        validation_loss=version.validation_loss,
    )


def _means(values: NDArray[np.float64]) -> dict[str, float]:
    return {kind: round(float(values[:, KINDS.index(kind)].mean()), 6) for kind in SHOWN}


def _interval(values: NDArray[np.float64], params: Evaluate) -> tuple[float, float]:
    low, high = bootstrap_interval(values, confidence=params.confidence, resamples=params.resamples, seed=params.seed)
    return round(low, 6), round(high, 6)


def _otherwise(before: list[list[Prediction]], after: list[list[Prediction]]) -> int:
    """Rows whose answers are not the same texts for the same seeds."""
    texts = [[[(answer.seed, answer.text) for answer in row] for row in side] for side in (before, after)]
    return sum(first != second for first, second in zip(*texts, strict=True))


def verdict(found: Comparison) -> str:
    """What the rows support, in plain words.

    A difference counts where the interval leaves 0 out and so does p: of very few rows the interval is too narrow.
    """
    names = f"{found.of.name} and {found.against.name}"
    if not found.other_answers:
        return f"No difference: {names} give the same answers to all {found.rows} rows."
    low, high = found.interval
    numbers = f"{found.rouge['rougeL']:+.4f} ROUGE-L, {found.confidence:.0%} interval [{low:+.4f}, {high:+.4f}]"
    if not low <= 0 <= high and found.p_value <= 1 - found.confidence:
        which = "better" if low > 0 else "worse"
        return f"{capital(found.of.name)} is {which} than {found.against.name}: {numbers}, on {found.rows} rows."
    return f"No difference that {found.rows} rows can show between {names}: {numbers}."


def sensitivity(found: Comparison) -> str:
    """What the rows could have shown; nothing where their differences are all the same."""
    if not found.half_width:
        return ""
    return (
        f"{found.rows} such rows show a difference of about {found.half_width:.3f} every second time, and one of "
        f"{found.shows_often:.3f} four times in five."
    )
