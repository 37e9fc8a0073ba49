"""Put both models' answers to each test row side by side, for log/hasil.jsonl and the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from howto.core.schema import Row
from howto.core.step_lists import is_numbered
from howto.evaluation.predictions import Answers
from howto.evaluation.scoring import Scores
from howto.evaluation.steps import MEASURES


def side_by_side(rows: Sequence[Row], answers: Mapping[str, Answers], scores: Scores) -> list[dict[str, Any]]:
    """Return each row's texts, both answers, and their F of ROUGE-L; `source` and `history` only of rows that have one.

    With several seeds the answers are those of the first seed, and the scores are means over all seeds. `steps` has
    what the first seed's answers score, on rows whose reference is a numbered list. Its `matches` are the line of each
    step of the answer, and the number of the reference's step that it matches, from 1.
    """
    means = {name: [round(mean, 6) for mean in model.row_means.tolist()] for name, model in scores.models.items()}
    return [
        {
            "id": row.id,
            "category": row.category,
            **({"source": row.source} if row.source else {}),
            **({"history": [turn.model_dump() for turn in row.history]} if row.history else {}),
            "intent": row.intent,
            "context": row.context,
            "reference": row.output,
            **{model: answers[model][number][0].text for model in answers},
            **{f"{model}_rougeL": means[model][number] for model in answers},
            **{f"{model}_stop": answers[model][number][0].stop for model in answers},
            "procedural": is_numbered(row.output),
            **({"steps": steps} if (steps := _steps(scores, number)) else {}),
        }
        for number, row in enumerate(rows)
    ]


def _steps(scores: Scores, number: int) -> dict[str, dict[str, Any]]:
    firsts = {model: of_model.first[number] for model, of_model in scores.steps.items()}
    return {
        model: {
            **{name: None if (value := getattr(first, name)) is None else round(value, 6) for name in MEASURES},
            **({"reference": first.reference} if first.reference else {}),  # one of the row's `references`, from 1
            "matches": first.matches,
        }
        for model, first in firsts.items()
        if first
    }
