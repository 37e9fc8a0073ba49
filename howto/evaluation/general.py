"""What the fine-tuning cost elsewhere: perplexity on general text, and answers to questions that are no how-to."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from howto.core.errors import UserError
from howto.core.step_lists import NUMBER, step_numbers
from howto.evaluation.config import Evaluate
from howto.evaluation.predictions import MODELS
from howto.evaluation.significance import bootstrap_interval
from howto.general.results import ChatAnswer, GeneralResults, general_path, read_results

Results = Mapping[str, GeneralResults]  # of each model


def read_general(folder: Path) -> Results:
    """Return both models' results.

    Raise UserError if a file is missing or damaged, or the models had other texts or questions.
    """
    results = {model: read_results(general_path(folder, model), f"general@{model}") for model in MODELS}
    base, adapter = (
        ([(one.name, one.tokens) for one in of.passages], [one.question for one in of.answers])
        for of in results.values()
    )
    if base != adapter:
        raise UserError(f"{folder}: general_base.json and general_adapter.json are of other inputs. Run `dvc repro`.")
    return results


def measure_general(results: Results, config: Evaluate) -> dict[str, Any]:
    """Return `general` (perplexity) and `chat` for metrics/evaluation.json; what was not measured is left out."""
    found: dict[str, Any] = {}
    if passages := results["base"].passages:
        tokens = np.array([one.tokens for one in passages], dtype=np.float64)
        means = {model: np.array([one.log_probability for one in of.passages]) for model, of in results.items()}
        found["general"] = {
            "passages": len(passages),
            "tokens": int(tokens.sum()),
            **{model: {"perplexity": round(_exp(-np.average(means[model], weights=tokens)), 4)} for model in MODELS},
            "delta": _change(means["adapter"] - means["base"], tokens, config),
        }
    if answers := results["base"].answers:
        checkable = sum(bool(one.question.accepted) for one in answers)
        found["chat"] = {
            "questions": len(answers),
            "checkable": checkable,
            **{model: _shares(of.answers) for model, of in results.items()},
        }
    return found


def _change(gains: NDArray[np.float64], tokens: NDArray[np.float64], config: Evaluate) -> dict[str, float]:
    """Return the adapter's perplexity less the base's, as a share of the base's, with a bootstrap interval.

    `gains` are the adapter's mean log-probabilities less the base's, [passages]. Passages are resampled. Their mean
    weighted by tokens is a ratio of two sums, so it is linearised around its value (Cochran 1977, section 6.3).
    """
    gain = np.average(gains, weights=tokens)
    linearised = gain + tokens / tokens.mean() * (gains - gain)
    low, high = bootstrap_interval(
        linearised, confidence=config.confidence, resamples=config.resamples, seed=config.seed
    )
    changes = {"": gain, "_low": high, "_high": low}  # more log-probability is less perplexity
    return {f"perplexity_change{name}": round(_exp(-value) - 1, 6) for name, value in changes.items()}


def _exp(value: float) -> float:
    return math.exp(min(700.0, value))


def _shares(answers: Sequence[ChatAnswer]) -> dict[str, float]:
    """Return `correct` (of the questions that list accepted strings, if any) and `numbered` (of all answers)."""
    checked = [is_correct(one) for one in answers if one.question.accepted]
    correct = {"correct": round(sum(checked) / len(checked), 6)} if checked else {}
    return {**correct, "numbered": round(sum(map(is_list, answers)) / len(answers), 6)}


def is_correct(answer: ChatAnswer) -> bool:
    """Return whether an answer has one of the accepted strings: as whole words, in any case.

    A step's number is no part of the answer. Nor is 4 in 14, 4.5 or 1,400.
    """
    text = NUMBER.sub(lambda match: match[0].replace(match[1], "", 1), answer.text)
    text = " ".join(text.casefold().replace("\u2019", "'").split())
    accepted = (" ".join(one.casefold().replace("\u2019", "'").split()) for one in answer.question.accepted)
    return any(re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(one)}(?!\w|[.,]\d)", text) for one in accepted)


def is_list(answer: ChatAnswer) -> bool:
    """Return whether an answer has two numbered lines or more."""
    return len(step_numbers(answer.text)) >= 2


def chat_rows(results: Results) -> list[dict[str, Any]]:
    """Return each question with both answers, and whether they are right where that can be checked, for the report."""
    return [
        {
            "question": base.question.question,
            "accepted": base.question.accepted,
            "base": base.text,
            "adapter": adapter.text,
            **(
                {"base_correct": is_correct(base), "adapter_correct": is_correct(adapter)}
                if base.question.accepted
                else {}
            ),
        }
        for base, adapter in zip(results["base"].answers, results["adapter"].answers, strict=True)
    ]


def cost_sentence(evaluation: Mapping[str, Any]) -> str:
    """Return what `measure_general` found, in a sentence or two; "" if nothing was measured."""
    sentences = []
    if general := evaluation.get("general"):
        base, adapter, delta = (general[part] for part in (*MODELS, "delta"))
        change, low, high = (delta[f"perplexity_change{name}"] for name in ("", "_low", "_high"))
        sentences.append(
            f"On general text, perplexity is {base['perplexity']:.1f} before and {adapter['perplexity']:.1f} after "
            f"({change:+.1%}, interval [{low:+.1%}, {high:+.1%}])."
        )
    if chat := evaluation.get("chat"):
        if total := chat["checkable"]:
            before, after = (round(chat[model]["correct"] * total) for model in MODELS)
            sentences.append(
                f"Of {total} plain questions, {before} get an answer with the right word before and {after} after."
            )
        before, after = (round(chat[model]["numbered"] * chat["questions"]) for model in MODELS)
        sentences.append(f"Of {chat['questions']} answers, {before} are numbered lists before and {after} after.")
    return " ".join(sentences)
