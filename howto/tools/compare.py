"""Compare the fine-tuned models of two versions of the project on the test rows that both have."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from howto.core.errors import UserError
from howto.core.reference_words import check_references
from howto.core.schema import Row
from howto.evaluation.config import Evaluate
from howto.evaluation.metrics import better_or_worse, difference_text, measure_difference, measure_model
from howto.evaluation.predictions import Answers
from howto.evaluation.results import side_by_side
from howto.evaluation.scoring import score
from howto.tools.versions import HERE, Version

POWER = 0.8  # share of comparisons that detect a difference of `detectable`


@dataclass(frozen=True)
class Side:
    """One version's fine-tuned model on the rows that both versions have."""

    name: str
    commit: str | None  # None: this folder
    rows_left_out: int  # test rows that the other version lacks, or has with other texts
    seeds: int
    metrics: dict[str, float | None]  # as of a model in metrics/evaluation.json, and `validation_loss`


@dataclass(frozen=True)
class Comparison:
    """What is found about two versions."""

    old: Side
    new: Side
    rows: int
    delta: dict[str, float]  # `new` less `old`, as in metrics/evaluation.json
    confidence: float
    changed_answers: int  # rows that the fine-tuned models answer differently
    changed_base_answers: int  # rows that the base models answer differently
    params: dict[str, tuple[Any, Any]]  # that differ, by dotted key; None: the version does not have it
    hashes: dict[str, tuple[str | None, str | None]]  # of inputs, outputs and code that differ, by path
    warnings: list[str]  # about references whose words the scores do not see
    results: list[dict[str, Any]]  # both answers to each row, as in log/hasil.jsonl

    @property
    def conclusion(self) -> str:
        """What the rows support, in one sentence."""
        names, rows = f"{self.new.name} and {self.old.name}", counted(self.rows, "row")
        if not self.changed_answers:
            return f"No difference: {names} give the same answers to all {rows}."
        numbers = difference_text(self.delta, self.confidence)
        if outcome := better_or_worse(self.delta, self.confidence):
            return sentence(f"{self.new.name} is {outcome} than {self.old.name}: {numbers}, on {rows}.")
        return f"On {rows}, there is no clear difference between {names}: {numbers}."

    @property
    def detectable(self) -> float:
        """The true difference that POWER of such comparisons detect, if means over rows are normal."""
        half_width = (self.delta["rougeL_high"] - self.delta["rougeL_low"]) / 2
        quantile = NormalDist().inv_cdf(0.5 + self.confidence / 2)
        return half_width * (quantile + NormalDist().inv_cdf(POWER)) / quantile

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` writes."""
        return {"conclusion": self.conclusion, "detectable": round(self.detectable, 6), **asdict(self)}


def compare_versions(old: Version, new: Version, config: Evaluate) -> Comparison:
    """Score both versions' answers with this code and these params, row by row.

    Raise UserError if no row is in both, or the tokenizer sees few words of their references.
    """
    numbers = common_rows(old.rows, new.rows)
    if not numbers:
        counts = f"{old.name} has {len(old.rows)}, {new.name} has {len(new.rows)}"
        raise UserError(f"no test row is in both versions ({counts}). Compare versions that share test rows.")
    rows = [new.rows[number] for _, number in numbers]
    warnings = check_references(rows, config.tokenizer)

    def answers_of(model: str) -> dict[str, Answers]:
        of_old, of_new = old.answers[model], new.answers[model]
        return {"old": [of_old[number] for number, _ in numbers], "new": [of_new[number] for _, number in numbers]}

    answers = answers_of("adapter")
    scores = score(rows, answers, [{}] * len(rows), use_stemmer=config.use_stemmer, tokenizer=config.tokenizer)
    sides = [
        Side(
            name=version.name,
            commit=version.commit,
            rows_left_out=len(version.rows) - len(rows),
            seeds=len(answers[name][0]),
            metrics={
                **measure_model(scores, name, rows, answers[name], config),
                "validation_loss": version.validation_loss,
            },
        )
        for name, version in (("old", old), ("new", new))
    ]
    return Comparison(
        old=sides[0],
        new=sides[1],
        rows=len(rows),
        delta=measure_difference(scores, "old", "new", config),
        confidence=config.confidence,
        changed_answers=_changed(answers),
        changed_base_answers=_changed(answers_of("base")),
        params=differing(params_in_force(old.params), params_in_force(new.params)),
        hashes=differing(old.hashes, new.hashes),
        warnings=warnings,
        results=side_by_side(rows, answers, scores),
    )


def common_rows(old: Sequence[Row], new: Sequence[Row]) -> list[tuple[int, int]]:
    """Return (number in `old`, number in `new`) of the rows with the same id, intent, context and references."""
    number_of = {_identity(row): number for number, row in enumerate(old)}
    return [(number_of[_identity(row)], number) for number, row in enumerate(new) if _identity(row) in number_of]


def _identity(row: Row) -> tuple[str, ...]:
    return row.id, row.input, row.context, row.output, *row.references


def _changed(answers: dict[str, Answers]) -> int:
    """Rows whose answers are not the same texts for the same seeds."""
    old, new = ([[(answer.seed, answer.text) for answer in of_row] for of_row in side] for side in answers.values())
    return sum(before != after for before, after in zip(old, new, strict=True))


def differing(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return both values of each key for which they differ; None: the key is missing."""
    keys = sorted(old.keys() | new.keys())
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def params_in_force(params: dict[str, Any]) -> dict[str, Any]:
    """Return the params behind the answers, by dotted key.

    Those of the active profile are under `profiles.<profile>`, whichever it is.
    """
    from dvc.utils.flatten import flatten

    active = (params.get("profiles") or {}).get(params.get("profile")) or {}
    return dict(flatten({**params, "profiles": {"<profile>": active}, "evaluate": {}}))


def counted(number: int, noun: str) -> str:
    """Return "1 row", or "2 rows"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def sentence(text: str) -> str:
    """Begin a sentence. The names of git's revisions keep their case."""
    return text[0].upper() + text[1:] if text.startswith(HERE) else text
