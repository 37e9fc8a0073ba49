"""Compare the fine-tuned models of two versions of the project, or base and fine-tuned model, on their common rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain, combinations
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from howto.core.errors import UserError
from howto.core.paths import ADAPTER, METRICS, PREDICTIONS
from howto.core.reference_words import check_references
from howto.evaluation.config import Evaluate
from howto.evaluation.metrics import better_or_worse, difference_text, measure_difference, measure_model
from howto.evaluation.predictions import MODELS, Answers
from howto.evaluation.results import side_by_side
from howto.evaluation.scoring import score
from howto.evaluation.significance import Certainty, over_rows_and_seeds
from howto.tools.versions import HERE, Version

POWER = 0.8  # share of comparisons that detect a difference of `detectable`
SEEDS = ("train.seed", "profiles.<profile>.train.seed")  # the profile's own has precedence
RESULTS_OF_A_RUN = (f"{PREDICTIONS}/", f"{METRICS}/")


@dataclass(frozen=True)
class Run:
    """One version's fine-tuned model on the rows that all versions have."""

    name: str
    commit: str | None  # None: this folder
    training_seed: int | None
    rows_left_out: int  # test rows that another version lacks, or has with other texts
    rougeL: float  # mean over rows


@dataclass(frozen=True)
class Side:
    """One of the two models that are compared, over all of its runs."""

    name: str
    runs: list[Run]  # one for each training seed; none: the base model
    seeds: int  # answers of a run to a row
    metrics: dict[str, float | None]  # means over runs, as of a model in metrics/evaluation.json, and `validation_loss`


@dataclass(frozen=True)
class Comparison:
    """What is found about two models."""

    old: Side
    new: Side
    rows: int
    delta: dict[str, float]  # `new` less `old`, as in metrics/evaluation.json; with several runs also standard errors
    confidence: float
    changed_answers: int  # rows to which not all compared models give the same answers
    changed_base_answers: int  # rows to which not all base models give the same answers
    params: dict[str, tuple[Any, Any]]  # that differ, by dotted key; None: the version does not have it
    hashes: dict[str, tuple[str | None, str | None]]  # of inputs, outputs and code that differ, by path
    warnings: list[str]  # about words that the scores do not see, and files that differ between the runs of a side
    results: list[dict[str, Any]]  # both answers to each row, as in log/hasil.jsonl

    @property
    def over_seeds(self) -> bool:
        """Whether the interval of the difference is over training seeds too."""
        return max(len(self.old.runs), len(self.new.runs)) > 1

    @property
    def sample(self) -> str:
        """What the interval of the difference is over, such as "120 rows" or "120 rows and 5 runs"."""
        runs = f" and {len(self.old.runs) + len(self.new.runs)} runs" if self.over_seeds else ""
        return counted(self.rows, "row") + runs

    @property
    def conclusion(self) -> str:
        """What the rows and runs support, in one sentence."""
        names = f"{self.new.name} and {self.old.name}"
        if not self.changed_answers:
            return f"No difference: {names} give the same answers to all {counted(self.rows, 'row')}."
        numbers = difference_text(self.delta, self.confidence)
        if outcome := better_or_worse(self.delta, self.confidence):
            return sentence(f"{self.new.name} is {outcome} than {self.old.name}: {numbers}, on {self.sample}.")
        return f"On {self.sample}, there is no clear difference between {names}: {numbers}."

    @property
    def detectable(self) -> float:
        """The true difference that POWER of such comparisons detect, if means are normal."""
        half_width = (self.delta["rougeL_high"] - self.delta["rougeL_low"]) / 2
        error = half_width / NormalDist().inv_cdf(0.5 + self.confidence / 2)
        if self.over_seeds:
            error = float(np.hypot(self.delta["rougeL_se_rows"], self.delta["rougeL_se_seeds"]))
        return half_width + NormalDist().inv_cdf(POWER) * error

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` writes."""
        return {"conclusion": self.conclusion, "detectable": round(self.detectable, 6), **asdict(self)}


def compare_versions(old: Sequence[Version], new: Sequence[Version], config: Evaluate) -> Comparison:
    """Score both sides' answers with this code and these params. If `old` is empty, it is the base model of `new`.

    Raise UserError if no row is in all versions, the tokenizer sees few words of their references, or the versions of a
    side are not runs that differ in their training seed alone.
    """
    versions, warnings = [*old, *new], [*check_runs(old), *check_runs(new)]
    numbers = common_rows(versions)
    rows = [versions[-1].rows[number] for number in numbers[-1]]
    if not rows:
        counts = ", ".join(f"{version.name} has {len(version.rows)}" for version in versions)
        raise UserError(f"no test row is in all versions ({counts}). Compare versions that share test rows.")
    warnings += check_references(rows, config.tokenizer)

    bases, adapters = (
        [[version.answers[model][number] for number in own] for version, own in zip(versions, numbers, strict=True)]
        for model in MODELS
    )
    changed_bases = _changed(bases)
    runs = {"old": adapters[: len(old)] or (bases if changed_bases else bases[:1]), "new": adapters[len(old) :]}
    # All answers of a side to a row are scored as one model's, run by run.
    answers = {name: [list(chain(*of_row)) for of_row in zip(*of_side, strict=True)] for name, of_side in runs.items()}
    scores = score(
        rows, answers, [{}] * len(rows), use_stemmer=config.use_stemmer, tokenizer=config.tokenizer, steps=config
    )
    of_old, of_new = (
        scores.models[name].rouge_l.reshape(len(rows), len(of_side), -1).mean(axis=2) for name, of_side in runs.items()
    )  # [rows, runs]
    delta = measure_difference(scores, "old", "new", config)
    if len(runs["old"]) > 1 or len(runs["new"]) > 1:
        certainty = over_rows_and_seeds(of_new, of_old, confidence=config.confidence)
        delta = _over_seeds(delta, certainty) | {"p_value": round(certainty.p_value, 6)}
    params = differing(params_in_force(versions[0].params), params_in_force(new[0].params))
    if max(len(old), len(new)) > 1:
        params = {key: values for key, values in params.items() if key not in SEEDS}
    names = (_name(old), _name(new)) if old else ("the base model", "the fine-tuned model")
    sides = {
        side: _side(
            *of_side,
            metrics=measure_model(scores, side, rows, answers[side], config),
            seeds=len(runs[side][0][0]),
            confidence=config.confidence,
        )
        for side, *of_side in zip(runs, names, (old, new), (of_old, of_new), strict=True)
    }
    return Comparison(
        **sides,
        rows=len(rows),
        delta=delta,
        confidence=config.confidence,
        changed_answers=_changed([*runs["old"], *runs["new"]]),
        changed_base_answers=changed_bases,
        params=params,
        hashes=differing(versions[0].hashes, new[0].hashes),
        warnings=warnings,
        results=side_by_side(rows, answers, scores),
    )


def check_runs(side: Sequence[Version]) -> list[str]:
    """Check that versions are runs that differ in their training seed alone. Return a warning if other files differ.

    Raise UserError if other params differ, or two runs have the same seed or the same adapter.
    """
    other_files: set[str] = set()
    for one, other in combinations(side, 2):
        params = differing(params_in_force(one.params), params_in_force(other.params))
        if training_seed(one.params) == training_seed(other.params):
            raise UserError(f"{one.name} and {other.name}: the same train.seed. Name one run for each training seed.")
        for key, (expected, got) in params.items():
            if key not in SEEDS:
                problem = f"{key}: expected {expected} as in {one.name}, got {got}"
                raise UserError(f"{other.name}: {problem}. Runs of one side may differ in train.seed alone.")
        files = differing(one.hashes, other.hashes)
        if str(ADAPTER) in one.hashes and str(ADAPTER) not in files:
            raise UserError(f"{one.name} and {other.name}: the same adapter, but another train.seed. Name one of them.")
        other_files |= {path for path in files if path != str(ADAPTER) and not path.startswith(RESULTS_OF_A_RUN)}
    return [f"runs of one side differ in other files: {', '.join(sorted(other_files))}"] if other_files else []


def common_rows(versions: Sequence[Version]) -> list[list[int]]:
    """Return, for each version, the numbers of the rows whose ids and texts all versions have, in the last one's order.

    `prepare.instruction` is no text of a row, but a param that the versions may differ in; another system message is.
    """
    number_of = [{same: number for number, same in enumerate(_identities(version))} for version in versions]
    common = [same for same in number_of[-1] if all(same in of_version for of_version in number_of)]
    return [[of_version[same] for same in common] for of_version in number_of]


def _identities(version: Version) -> list[tuple[Any, ...]]:
    in_force = params_in_force(version.params)
    instruction = in_force.get("profiles.<profile>.prepare.instruction", in_force.get("prepare.instruction"))
    own = ["" if row.instruction == instruction else row.instruction for row in version.rows]
    return [
        (row.id, system, row.history, row.input, row.context, row.output, row.references)
        for row, system in zip(version.rows, own, strict=True)
    ]


def _changed(runs: Sequence[Answers]) -> int:
    """Rows whose answers are not the same texts for the same seeds in all runs."""
    texts = [[[(answer.seed, answer.text) for answer in of_row] for of_row in of_run] for of_run in runs]
    return sum(any(other != of_row[0] for other in of_row) for of_row in zip(*texts, strict=True))


def _name(versions: Sequence[Version]) -> str:
    names = [version.name.split(" (")[0] for version in versions]
    return versions[0].name if len(versions) == 1 else f"the mean of {', '.join(names)}"


def _side(
    name: str,
    versions: Sequence[Version],
    by_run: NDArray[np.float64],
    *,
    metrics: dict[str, float],
    seeds: int,
    confidence: float,
) -> Side:
    """Return the side with these scores, [rows, runs], and these metrics of all its answers."""
    means = by_run.mean(axis=0)
    if len(means) > 1:
        certainty = over_rows_and_seeds(by_run, np.zeros((len(by_run), 1)), confidence=confidence)
        metrics = _over_seeds(metrics, certainty) | {"rougeL_run_sd": round(float(means.std(ddof=1)), 6)}
    losses = [version.validation_loss for version in versions if version.validation_loss is not None]
    return Side(
        name=name,
        runs=[
            Run(
                name=version.name,
                commit=version.commit,
                training_seed=training_seed(version.params),
                rows_left_out=len(version.rows) - len(by_run),
                rougeL=round(mean, 6),
            )
            for version, mean in zip(versions, means.tolist(), strict=bool(versions))
        ],
        seeds=seeds,
        metrics={**metrics, "validation_loss": fmean(losses) if losses else None},
    )


def _over_seeds(found: dict[str, float], certainty: Certainty) -> dict[str, float]:
    """Replace an interval over rows by one over rows and training seeds, and add both standard errors."""
    numbers = {f"rougeL_{name}": round(getattr(certainty, name), 6) for name in ("low", "high", "se_rows", "se_seeds")}
    return {name: value for name, value in found.items() if name != "rougeL_seed_sd"} | numbers


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
    return dict(flatten({**params, "profiles": {"<profile>": active}, "evaluate": {}, "general": {}}))


def training_seed(params: dict[str, Any]) -> int | None:
    """Return the training seed of the active profile; None if the file has none."""
    in_force = params_in_force(params)
    return next((in_force[key] for key in reversed(SEEDS) if key in in_force), None)


def counted(number: int, noun: str) -> str:
    """Return "1 row", or "2 rows"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def sentence(text: str) -> str:
    """Begin a sentence. The names of git's revisions keep their case."""
    return text[0].upper() + text[1:] if text.startswith((HERE, "the ")) else text
