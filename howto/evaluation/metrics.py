"""The numbers of a run: all of them for metrics/evaluation.json, and the few that runs are compared by."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from howto.core.errors import UserError
from howto.core.schema import Row
from howto.core.step_lists import is_numbered, is_well_numbered, step_numbers
from howto.evaluation.baselines import LABELS
from howto.evaluation.config import Evaluate
from howto.evaluation.embeddings import similarities
from howto.evaluation.plots import MIN_ROWS
from howto.evaluation.predictions import MODELS, Answers
from howto.evaluation.rouge import KINDS
from howto.evaluation.scoring import ModelScores, Scores
from howto.evaluation.significance import bootstrap_interval, permutation_p_value

OTHER_KINDS = [kind for kind in KINDS if kind != "rougeL"]


def measure(rows: Sequence[Row], answers: Mapping[str, Answers], scores: Scores, config: Evaluate) -> dict[str, Any]:
    """Return what metrics/evaluation.json holds: numbers only, in nested mappings. Scores and shares are in 0..1.

    Raise UserError if `embedding_model` is set and cannot be loaded.
    """
    evaluation: dict[str, Any] = {
        "rows": len(rows),
        "procedural_rows": sum(is_numbered(row.output) for row in rows),
        "seeds": len(answers["base"][0]),
        **{model: measure_model(scores, model, rows, answers[model], config) for model in MODELS},
        "delta": measure_difference(scores, "base", "adapter", config),
        "baselines": {name: _mean(of_rows) for name, of_rows in scores.baselines.items()},
        "ceiling": {"reference": _mean(scores.ceiling)},
        "use_stemmer": int(config.use_stemmer),
        **({"unicode_words": 1} if config.tokenizer == "unicode" else {}),
    }
    if config.embedding_model:
        base, adapter = (evaluation[model]["similarity"] for model in MODELS)
        evaluation["delta"]["similarity"] = round(adapter - base, 6)
    return evaluation


def measure_model(
    all_scores: Scores, model: str, rows: Sequence[Row], answers: Answers, config: Evaluate
) -> dict[str, float]:
    """Return a model's mean F of each kind of ROUGE, the interval of ROUGE-L, and other measures of its answers."""
    scores = all_scores.models[model]
    every_answer = [answer for of_row in answers for answer in of_row]
    found = {
        **_rouge_l(scores.row_means, config),
        **{kind: _mean_f(scores, kind) for kind in OTHER_KINDS},
        "ended_by_eos": _mean([answer.stop == "eos" for answer in every_answer]),
        "empty": sum(not answer.text for answer in every_answer),
        "length_ratio": round(scores.words.mean() / max(1.0, all_scores.reference_words.mean()), 6),
    }
    for name, shares in (("repeated", scores.repeated), ("copied", scores.copied)):
        if not np.isnan(shares).all():
            found[name] = round(float(np.nanmean(shares)), 6)
    pairs = [(row.output, answer.text) for row, of_row in zip(rows, answers, strict=True) for answer in of_row]
    numbered = [(reference, text) for reference, text in pairs if is_numbered(reference)]
    if numbered:
        steps = [(step_numbers(reference), step_numbers(text)) for reference, text in numbered]
        found["well_numbered"] = _mean([is_well_numbered(text) for _, text in numbered])
        found["steps_in_order"] = _mean([bool(own) and own == list(range(1, len(own) + 1)) for _, own in steps])
        found["steps_off"] = _mean([abs(len(own) - len(of_reference)) for of_reference, own in steps])
    if model in all_scores.steps:
        found |= _steps(all_scores.steps[model].values, config)
    if (perplexity := _perplexity(answers)) is not None:
        found["perplexity"] = round(perplexity, 4)
    if scores.rouge_l.shape[1] > 1:
        found["rougeL_seed_sd"] = _seed_sd(scores.rouge_l)
    if config.embedding_model:
        found["similarity"] = _mean(similarities(config.embedding_model, pairs))
    return found


def measure_difference(scores: Scores, old_model: str, new_model: str, config: Evaluate) -> dict[str, float]:
    """Return how much more the new model scores, row by row: with interval, p-value, wins, ties and losses."""
    old, new = scores.models[old_model], scores.models[new_model]
    differences = new.row_means - old.row_means
    found = {
        **_rouge_l(differences, config),
        "p_value": round(permutation_p_value(differences, resamples=config.resamples, seed=config.seed), 6),
        "wins": int((differences > 0).sum()),
        "ties": int((differences == 0).sum()),
        "losses": int((differences < 0).sum()),
        **{kind: round(_mean_f(new, kind) - _mean_f(old, kind), 6) for kind in OTHER_KINDS},
    }
    if scores.steps:
        before, after = (scores.steps[model].values for model in (old_model, new_model))
        found |= _steps({name: after[name] - before[name] for name in after}, config)
    if new.rouge_l.shape[1] == old.rouge_l.shape[1] > 1:
        found["rougeL_seed_sd"] = _seed_sd(new.rouge_l - old.rouge_l)
    return found


def _rouge_l(values: NDArray[np.float64], config: Evaluate) -> dict[str, float]:
    low, high = bootstrap_interval(values, confidence=config.confidence, resamples=config.resamples, seed=config.seed)
    return {"rougeL": _mean(values), "rougeL_low": round(low, 6), "rougeL_high": round(high, 6)}


def _steps(values: Mapping[str, NDArray[np.float64]], config: Evaluate) -> dict[str, float]:
    """Each measure's mean over the rows that have a value, and its interval if there are MIN_ROWS of them."""
    found: dict[str, float] = {}
    for name, of_rows in values.items():
        known = of_rows[~np.isnan(of_rows)]
        if not known.size:
            continue
        found |= {f"step_{name}": _mean(known), f"step_{name}_rows": known.size}
        if known.size >= MIN_ROWS:
            ends = bootstrap_interval(known, confidence=config.confidence, resamples=config.resamples, seed=config.seed)
            found |= {f"step_{name}_{end}": round(value, 6) for end, value in zip(("low", "high"), ends, strict=True)}
    return found


def _mean_f(scores: ModelScores, kind: str) -> float:
    return _mean(scores.rouge[:, :, KINDS.index(kind), 2])


def _mean(values: NDArray[np.float64] | Sequence[float]) -> float:
    return round(float(np.mean(values)), 6)


def _seed_sd(values: NDArray[np.float64]) -> float:
    """Standard deviation, over the seeds, of the means of `values` [rows, seeds]."""
    return round(float(values.mean(axis=0).std(ddof=1)), 6)


def _perplexity(answers: Answers) -> float | None:
    """exp of the mean loss a token of the references that the model could read, or None."""
    read = [answer for of_row in answers for answer in of_row if answer.reference_log_probability is not None]
    tokens = sum(answer.reference_tokens for answer in read)
    total = math.fsum(answer.reference_tokens * (answer.reference_log_probability or 0.0) for answer in read)
    return math.exp(min(700.0, -total / tokens)) if tokens else None


def summarize(evaluation: Mapping[str, Any], training: Path) -> dict[str, Any]:
    """Return what metrics/metrics.json holds: the numbers that `dvc metrics` and `dvc exp show` compare runs by.

    `training` is metrics/train.json. `val_loss` is left out if there were no validation rows, and `val_rougeL` if they
    were not answered.

    Raise UserError if `training` is missing or damaged.
    """
    try:
        trained = json.loads(training.read_text(encoding="utf-8"))
        loss, parameters = trained["validation_loss"], trained["trainable_parameters"]
        rouge_l = trained.get("validation_rougeL")
    except FileNotFoundError:
        raise UserError(f"{training}: no such file. Make it with `dvc repro train`.") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{training}: damaged. Make it again with `dvc repro -f train`.") from None
    gain = evaluation["delta"]
    cost = evaluation.get("general", {}).get("delta")
    return {
        **{model: {"rougeL": evaluation[model]["rougeL"]} for model in MODELS},
        "delta": {
            "rougeL": gain["rougeL"],
            "low": gain["rougeL_low"],
            "high": gain["rougeL_high"],
            "p_value": gain["p_value"],
        },
        "baseline": {"rougeL": max(evaluation["baselines"].values())},  # the best one
        **({} if loss is None else {"val_loss": loss}),
        **({} if rouge_l is None else {"val_rougeL": rouge_l}),
        **({"general": {"perplexity_change": cost["perplexity_change"]}} if cost else {}),
        "trainable_parameters": parameters,
    }


def verdict(evaluation: Mapping[str, Any], confidence: float) -> str:
    """Return what the numbers support, in two or three sentences."""
    delta, baselines, score = evaluation["delta"], evaluation["baselines"], evaluation["adapter"]["rougeL"]
    rows, numbers = f"{evaluation['rows']} held-out rows", difference_text(delta, confidence)
    if outcome := better_or_worse(delta, confidence):
        gain = f"The fine-tuned model is {outcome}: {numbers}, on {rows}."
    else:
        gain = f"On {rows}, there is no clear difference: {numbers}."
    best = max(baselines, key=lambda name: baselines[name])
    baseline = f"The best baseline, {LABELS[best]}, scores {baselines[best]:.4f}."
    beaten = "" if score > baselines[best] else f" The fine-tuned model ({score:.4f}) does not beat it."
    return f"{gain} {baseline}{beaten}"


def better_or_worse(delta: Mapping[str, float], confidence: float) -> str | None:
    """Return which of the two a difference in ROUGE-L shows, or None if it may be chance.

    The interval has to exclude 0, and p has to agree: on very few rows the interval is too narrow.
    """
    if delta["rougeL_low"] <= 0 <= delta["rougeL_high"] or delta["p_value"] > 1 - confidence:
        return None
    return "better" if delta["rougeL"] > 0 else "worse"


def difference_text(delta: Mapping[str, float], confidence: float) -> str:
    """Return a difference in ROUGE-L with its interval, for a sentence."""
    interval = f"{confidence:.0%} interval [{delta['rougeL_low']:+.4f}, {delta['rougeL_high']:+.4f}]"
    return f"{delta['rougeL']:+.4f} ROUGE-L, {interval}"
