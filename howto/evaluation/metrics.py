"""The numbers of metrics/metrics.json, from what every row scored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from howto.core.schema import Prediction, Row
from howto.core.step_lists import is_numbered, is_well_numbered, step_numbers
from howto.evaluation.baselines import NAMES
from howto.evaluation.config import Evaluate
from howto.evaluation.rouge import KINDS
from howto.evaluation.scoring import Scores
from howto.evaluation.significance import bootstrap_interval, permutation_p_value

MODELS = ("base", "adapter")
OTHER_KINDS = [kind for kind in KINDS if kind != "rougeL"]


def measure(
    rows: Sequence[Row], predictions: dict[str, list[list[Prediction]]], scores: Scores, params: Evaluate
) -> dict[str, Any]:
    """All metrics: scores in 0..1, as mean F of ROUGE over rows, the rows of several seeds by their own mean.

    `predictions` are [rows][seeds] of each model; the answers in `scores` are those of the base, then the adapter's.
    """
    seeds = len(predictions["base"][0])
    of = {"base": slice(0, seeds), "adapter": slice(seeds, 2 * seeds)}
    row_means = {model: scores.rouge_l[:, of[model]].mean(axis=1) for model in MODELS}
    procedural = np.array([is_numbered(row.output) for row in rows])
    metrics: dict[str, Any] = {"rows": len(rows), "procedural_rows": int(procedural.sum()), "seeds": seeds}
    for model in MODELS:
        metrics[model] = {
            **_interval(row_means[model], params),
            **{kind: _mean(scores.rouge[:, of[model], KINDS.index(kind), 2]) for kind in OTHER_KINDS},
            **_of_answers(rows, predictions[model], scores, of[model], procedural),
        }
        if seeds > 1:
            by_seed = scores.rouge_l[:, of[model]].mean(axis=0)
            metrics[model]["rougeL_seed_sd"] = round(float(by_seed.std(ddof=1)), 6)
    differences = row_means["adapter"] - row_means["base"]
    metrics["delta"] = {
        **_interval(differences, params),
        "p_value": round(permutation_p_value(differences, resamples=params.resamples, seed=params.seed), 6),
        "wins": int((differences > 0).sum()),
        "ties": int((differences == 0).sum()),
        "losses": int((differences < 0).sum()),
        **{kind: round(metrics["adapter"][kind] - metrics["base"][kind], 6) for kind in OTHER_KINDS},
    }
    if seeds > 1:
        by_seed = (scores.rouge_l[:, of["adapter"]] - scores.rouge_l[:, of["base"]]).mean(axis=0)
        metrics["delta"]["rougeL_seed_sd"] = round(float(by_seed.std(ddof=1)), 6)
    metrics["floors"] = {name: _mean(scores.floors[:, number]) for number, name in enumerate(NAMES)}
    metrics["ceiling"] = {"reference": _mean(scores.floors[:, len(NAMES)])}
    metrics["use_stemmer"] = int(params.use_stemmer)
    return metrics


def _interval(values: NDArray[np.float64], params: Evaluate) -> dict[str, float]:
    low, high = bootstrap_interval(values, confidence=params.confidence, resamples=params.resamples, seed=params.seed)
    return {"rougeL": _mean(values), "rougeL_low": round(low, 6), "rougeL_high": round(high, 6)}


def _of_answers(
    rows: Sequence[Row],
    predictions: list[list[Prediction]],
    scores: Scores,
    of: slice,
    procedural: NDArray[np.bool_],
) -> dict[str, float]:
    """What a model's answers look like, beside their overlap with the references; shares in 0..1."""
    all_answers = [prediction for of_row in predictions for prediction in of_row]
    found: dict[str, float] = {
        "ended_by_eos": _mean(np.array([answer.stop == "eos" for answer in all_answers], dtype=float)),
        "empty": sum(not answer.text for answer in all_answers),
        "length_ratio": round(scores.words[:, of].mean() / max(1.0, scores.reference_words.mean()), 6),
    }
    for name, shares in (("repeated", scores.repeated[:, of]), ("copied", scores.copied[:, of])):
        if not np.isnan(shares).all():
            found[name] = round(float(np.nanmean(shares)), 6)
    if procedural.any():
        pairs = [
            (answer.text, step_numbers(row.output))
            for row, of_row, is_it in zip(rows, predictions, procedural, strict=True)
            if is_it
            for answer in of_row
        ]
        numbers = [step_numbers(text) for text, _ in pairs]
        found["well_numbered"] = _mean(np.array([is_well_numbered(text) for text, _ in pairs], dtype=float))
        in_order = [bool(steps) and steps == list(range(1, len(steps) + 1)) for steps in numbers]
        found["steps_in_order"] = _mean(np.array(in_order, dtype=float))
        off = [abs(len(steps) - len(wanted)) for steps, (_, wanted) in zip(numbers, pairs, strict=True)]
        found["steps_off"] = _mean(np.array(off, dtype=float))
    if (perplexity := _perplexity(predictions)) is not None:
        found["perplexity"] = round(perplexity, 4)
    return found


def _perplexity(predictions: list[list[Prediction]]) -> float | None:
    """Of the references, those that were not too long for the model: exp of their mean loss a token."""
    known = [of_row[0] for of_row in predictions if of_row[0].reference_log_probability is not None]
    tokens = sum(prediction.reference_tokens for prediction in known)
    if not tokens:
        return None
    total = math.fsum(p.reference_tokens * (p.reference_log_probability or 0.0) for p in known)
    return math.exp(min(700.0, -total / tokens))


def _mean(values: NDArray[np.float64]) -> float:
    return round(float(values.mean()), 6)


def verdict(metrics: dict[str, Any], confidence: float) -> str:
    """What the numbers support, in one sentence."""
    delta = metrics["delta"]
    interval = f"{confidence:.0%} interval [{delta['rougeL_low']:+.4f}, {delta['rougeL_high']:+.4f}]"
    rows = f"{metrics['rows']} held-out rows"
    if delta["rougeL_low"] > 0 or delta["rougeL_high"] < 0:
        which = "better" if delta["rougeL"] > 0 else "worse"
        said = f"The fine-tuned model is {which}: {delta['rougeL']:+.4f} ROUGE-L, {interval}, on {rows}."
    else:
        said = f"No difference that {rows} can show: {delta['rougeL']:+.4f} ROUGE-L, {interval}."
    best = max(metrics["floors"], key=lambda name: metrics["floors"][name])
    floor = metrics["floors"][best]
    if metrics["adapter"]["rougeL"] <= floor:
        return f"{said} Yet it scores no more ({metrics['adapter']['rougeL']:.4f}) than {FLOORS[best]} ({floor:.4f})."
    return f"{said} The highest floor, {FLOORS[best]}, is at {floor:.4f}."


FLOORS = {
    "echo_intent": "echoing the intent",
    "echo_context": "echoing the context or else the intent",
    "random_answer": "a random training answer",
    "nearest_answer": "the nearest training answer",
}
