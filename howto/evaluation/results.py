"""Put both models' answers to each test row side by side, for log/hasil.jsonl and the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from howto.core.schema import Row
from howto.core.step_lists import is_numbered
from howto.evaluation.predictions import Answers
from howto.evaluation.scoring import Scores


def side_by_side(rows: Sequence[Row], answers: Mapping[str, Answers], scores: Scores) -> list[dict[str, Any]]:
    """Return each row's texts, both answers, and their F of ROUGE-L; `source` and `history` only of rows that have one.

    With several seeds the answers are those of the first seed, and the scores are means over all seeds.
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
        }
        for number, row in enumerate(rows)
    ]
