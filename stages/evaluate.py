"""Score what base and adapter wrote for the held-out rows, and say what the fine-tuning bought.

reads:   data/prepared/test.jsonl, data/predictions/base.jsonl, data/predictions/adapter.jsonl
params:  evaluate
writes:  metrics/metrics.json, metrics/rouge_by_category.csv, log/hasil.jsonl (both models side by side, row by row)

`--show N` runs nothing: it prints the comparison that was made, and N of its answers side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from howto.interval import bootstrap_interval
from howto.params.evaluate import Evaluate
from howto.params.file import read_params
from howto.rouge import RougeL
from howto.rows import Prediction, Row, read_rows, write_rows
from howto.steps import is_numbered, is_well_numbered
from howto.stop import Stop, stops_cleanly
from howto.whole import whole_file, write_json

TEST = Path("data/prepared/test.jsonl")
PREDICTIONS = Path("data/predictions")
METRICS = Path("metrics/metrics.json")
BY_CATEGORY = Path("metrics/rouge_by_category.csv")
RESULTS = Path("log/hasil.jsonl")
MODELS = ("base", "adapter")


class Result(BaseModel):
    """One test row with both answers and both ROUGE-L scores (0..1)."""

    model_config = ConfigDict(strict=True)
    id: str
    category: str
    intent: str
    context: str
    reference: str
    base: str
    adapter: str
    base_rougeL: float
    adapter_rougeL: float


@stops_cleanly
def main() -> None:
    """Run the stage, or print what it made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--show", metavar="N", type=int, help="print the comparison and N answers side by side")
    arguments = parser.parse_args()
    if arguments.show is not None:
        from howto.comparison import print_comparison

        print_comparison(METRICS, RESULTS, arguments.show)
        return
    params = read_params().section(Evaluate)
    rows = read_rows(TEST, Row)
    predictions = {model: match(rows, PREDICTIONS / f"{model}.jsonl") for model in MODELS}
    rouge = RougeL(use_stemmer=params.use_stemmer)
    scores = {
        model: [rouge(row.output, p.text) for row, p in zip(rows, predictions[model], strict=True)] for model in MODELS
    }
    metrics = measure(rows, predictions, scores, rouge, params)
    write_rows(
        RESULTS,
        [
            Result(
                id=row.id,
                category=row.category,
                intent=row.intent,
                context=row.context,
                reference=row.output,
                base=predictions["base"][number].text,
                adapter=predictions["adapter"][number].text,
                base_rougeL=round(scores["base"][number], 6),
                adapter_rougeL=round(scores["adapter"][number], 6),
            )
            for number, row in enumerate(rows)
        ],
    )
    write_by_category(rows, scores)
    write_json(METRICS, metrics)
    print(
        f"evaluate: ROUGE-L {metrics['base']['rougeL']:.4f} -> {metrics['adapter']['rougeL']:.4f} "
        f"on {len(rows)} held-out rows -> {METRICS}"
    )


def match(rows: list[Row], path: Path) -> list[Prediction]:
    """The predictions in a file, which must be those of the test rows, in their order.

    Raises:
        Stop: a row has no prediction, or a prediction no row; the message names the line.
    """
    predictions = read_rows(path, Prediction)
    again = f"make it again with `dvc repro -f infer@{path.stem}`"
    for number, (row, prediction) in enumerate(zip(rows, predictions, strict=False), 1):
        if row.id != prediction.id:
            raise Stop(f"{path}:{number}: answers row {prediction.id}, but {TEST}:{number} is row {row.id}; {again}")
    if len(rows) != len(predictions):
        raise Stop(f"{path}: {len(predictions)} predictions for the {len(rows)} rows of {TEST}; {again}")
    return predictions


def measure(
    rows: list[Row],
    predictions: dict[str, list[Prediction]],
    scores: dict[str, list[float]],
    rouge: RougeL,
    params: Evaluate,
) -> dict[str, Any]:
    """All numbers of metrics.json: ROUGE-L (F-measure) and shares in 0..1; `low` and `high` bound an interval."""
    procedural = [number for number, row in enumerate(rows) if is_numbered(row.output)]

    def mean_and_interval(values: list[float]) -> dict[str, float]:
        low, high = bootstrap_interval(
            values, confidence=params.confidence, resamples=params.resamples, seed=params.seed
        )
        return {"rougeL": round(fmean(values), 6), "rougeL_low": round(low, 6), "rougeL_high": round(high, 6)}

    metrics: dict[str, Any] = {
        model: {
            **mean_and_interval(scores[model]),
            "ended_by_eos": _share([p.stop == "eos" for p in predictions[model]]),
            "empty": sum(not p.text for p in predictions[model]),
            "well_numbered": _share([is_well_numbered(predictions[model][number].text) for number in procedural]),
        }
        for model in MODELS
    }
    metrics["delta"] = mean_and_interval([a - b for a, b in zip(scores["adapter"], scores["base"], strict=True)])
    metrics["floor"] = {
        "echo_intent": round(fmean(rouge(row.output, row.intent) for row in rows), 6),
        "echo_context": round(fmean(rouge(row.output, row.context or row.intent) for row in rows), 6),
    }
    metrics["rows"] = {"test": len(rows), "procedural": len(procedural)}
    return metrics


def write_by_category(rows: list[Row], scores: dict[str, list[float]]) -> None:
    """Mean ROUGE-L of both models in each category, in a form that `dvc plots` draws."""
    table = pd.DataFrame({"category": [row.category for row in rows], **scores})
    means = table.melt("category", var_name="model", value_name="rougeL").groupby(["category", "model"]).mean()
    with whole_file(BY_CATEGORY) as file:
        means.round(6).to_csv(file, lineterminator="\n")


def _share(hits: list[bool]) -> float | None:
    """Share of hits in 0..1; None where there is nothing to count."""
    return round(sum(hits) / len(hits), 6) if hits else None


if __name__ == "__main__":
    main()
