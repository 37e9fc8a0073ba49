"""Score what base and adapter wrote for the held-out rows, and say what the fine-tuning bought.

reads:   data/prepared/test.jsonl, data/prepared/train.jsonl (for the floors), data/predictions/{base,adapter}.jsonl,
         metrics/train_loss.csv, metrics/validation_loss.csv (for the report), metrics/train.json (for the summary)
params:  evaluate; and what the report names: profile, profiles.<profile>.model.source, profiles.<profile>.data.source
writes:  metrics/summary.json (what runs are compared by), metrics/metrics.json (all of it), metrics/report.html,
         metrics/{rouge,slices,differences,lengths_and_scores}.csv (plots), log/hasil.jsonl (both models side by side,
         row by row)
"""

from __future__ import annotations

import argparse
import csv
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from howto.core.atomic import atomic_file, write_json
from howto.core.config import Params
from howto.core.errors import UserError, reports_errors
from howto.core.output_lock import output_lock
from howto.core.paths import EVALUATION, HEADLINE, LOCK, METRICS, PREDICTIONS, REPORT, RESULTS, TEST, TRAIN, TRAINING
from howto.core.schema import Prediction, Row, read_rows, write_rows
from howto.core.step_lists import is_numbered
from howto.evaluation.baselines import floor_answers
from howto.evaluation.config import Evaluate
from howto.evaluation.headline import summarise
from howto.evaluation.metrics import MODELS, measure, verdict
from howto.evaluation.predictions import check_against_lock, read_predictions
from howto.evaluation.report import Content, write_report
from howto.evaluation.rouge import KINDS
from howto.evaluation.scoring import Scores, Texts, score
from howto.evaluation.slices import groups, slice_table
from howto.params import read_params

WIDTH = 0.05  # of a bar in the histogram of row differences


class Result(BaseModel):
    """One test row with both models' answers and their ROUGE-L scores (0..1).

    With several seeds the answers are those of the first, and the scores the means over all.
    """

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
    base_stop: str
    adapter_stop: str
    procedural: bool


@reports_errors
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params()
    evaluate = params.section(Evaluate)
    with output_lock(EVALUATION):
        compare(params, evaluate)


def compare(params: Params, evaluate: Evaluate) -> None:
    """Do the stage's work in the working directory.

    Raises:
        UserError: what was made before is missing, damaged, or not of one run.
    """
    rows, train = read_rows(TEST, Row), read_rows(TRAIN, Row)
    predictions = read_all(params, rows)
    scores = score_all(rows, train, predictions, evaluate)
    metrics = measure(rows, predictions, scores, evaluate)
    if evaluate.embedding_model:
        add_similarity(metrics, rows, predictions, evaluate.embedding_model)
    brief = summarise(metrics, TRAINING)
    means = row_means(scores)
    results = side_by_side(rows, predictions, means)
    procedural = np.array([result.procedural for result in results])
    slices = slice_table(groups(rows, scores.reference_words, procedural), means["base"], means["adapter"], evaluate)
    said = verdict(metrics, evaluate.confidence)
    write_rows(RESULTS, results)
    write_plots(scores, slices, means)
    write_report(REPORT, report(params, said, metrics, slices, results))
    write_json(EVALUATION, metrics)
    write_json(HEADLINE, brief)
    print(f"evaluate: {said} -> {METRICS / 'report.html'}")


def read_all(params: Params, rows: list[Row]) -> dict[str, list[list[Prediction]]]:
    """Both models' predictions, [rows][seeds].

    Raises:
        UserError: they are not those of the test rows, or not those that dvc.lock knows.
    """
    used = {key: params.value(key) for key in ("infer", f"profiles.{params.profile}.infer")}
    found = {}
    for model in MODELS:
        path = PREDICTIONS / f"{model}.jsonl"
        found[model] = read_predictions(path, rows, TEST)
        check_against_lock(path, LOCK, used, params.path)
    seeds = {model: [prediction.seed for prediction in found[model][0]] for model in MODELS}
    if seeds["base"] != seeds["adapter"]:
        raise UserError(
            f"{PREDICTIONS}: base has the seeds {seeds['base']}, adapter {seeds['adapter']}; run `dvc repro`"
        )
    return found


def score_all(
    rows: list[Row], train: list[Row], predictions: dict[str, list[list[Prediction]]], params: Evaluate
) -> Scores:
    """Scores of both models' answers, of the floors, and of the ceiling, which comes behind them."""
    floors = floor_answers(rows, train, seed=params.seed)
    texts = [
        Texts(
            (row.output, *row.references),
            row.input,
            tuple(prediction.text for model in MODELS for prediction in predictions[model][number]),
            (*floors[number].values(), row.output),
        )
        for number, row in enumerate(rows)
    ]
    return score(texts, use_stemmer=params.use_stemmer)


def add_similarity(
    metrics: dict[str, Any], rows: list[Row], predictions: dict[str, list[list[Prediction]]], model: str
) -> None:
    """Add the mean similarity in meaning of answers and references."""
    from howto.evaluation.similarity import similarities

    for name in MODELS:
        pairs = [(row.output, p.text) for row, of_row in zip(rows, predictions[name], strict=True) for p in of_row]
        metrics[name]["similarity"] = round(float(np.mean(similarities(model, pairs))), 6)
    metrics["delta"]["similarity"] = round(metrics["adapter"]["similarity"] - metrics["base"]["similarity"], 6)


def row_means(scores: Scores) -> dict[str, NDArray[np.float64]]:
    """F of ROUGE-L of each model, [rows], the mean over its seeds."""
    halves = np.split(scores.rouge_l, 2, axis=1)
    return {model: half.mean(axis=1) for model, half in zip(MODELS, halves, strict=True)}


def side_by_side(
    rows: list[Row], predictions: dict[str, list[list[Prediction]]], means: dict[str, NDArray[np.float64]]
) -> list[Result]:
    """What log/hasil.jsonl holds."""
    return [
        Result(
            id=row.id,
            category=row.category,
            intent=row.intent,
            context=row.context,
            reference=row.output,
            base=predictions["base"][number][0].text,
            adapter=predictions["adapter"][number][0].text,
            base_rougeL=round(float(means["base"][number]), 6),
            adapter_rougeL=round(float(means["adapter"][number]), 6),
            base_stop=predictions["base"][number][0].stop,
            adapter_stop=predictions["adapter"][number][0].stop,
            procedural=is_numbered(row.output),
        )
        for number, row in enumerate(rows)
    ]


def write_plots(scores: Scores, slices: pd.DataFrame, means: dict[str, NDArray[np.float64]]) -> None:
    """Write the tables that `dvc plots` draws, and that hold what is too much for metrics.json."""
    halves = np.split(scores.rouge, 2, axis=1)  # [rows, seeds, kinds, precision / recall / F]
    rouge = pd.DataFrame(
        [
            (model, kind, *half[:, :, number].mean(axis=(0, 1)))
            for model, half in zip(MODELS, halves, strict=True)
            for number, kind in enumerate(KINDS)
        ],
        columns=["model", "metric", "precision", "recall", "fmeasure"],
    )
    by_model = pd.concat(
        [
            slices[["slice", "group", "rows"]].assign(
                model=model, rougeL=slices[model], low=slices[f"{model}_low"], high=slices[f"{model}_high"]
            )
            for model in MODELS
        ]
    )
    differences = means["adapter"] - means["base"]
    bars = np.floor(differences / WIDTH + 1e-9) * WIDTH
    counts = pd.Series(bars.round(2)).value_counts().sort_index()
    lengths = pd.concat(
        [pd.DataFrame({"words": scores.reference_words, "model": model, "rougeL": means[model]}) for model in MODELS]
    )
    tables = {
        "rouge": rouge,
        "slices": by_model,
        "differences": counts.rename_axis("difference").reset_index(name="rows"),
        "lengths_and_scores": lengths.sort_values(["words", "model"], kind="stable"),
    }
    for name, table in tables.items():
        with atomic_file(METRICS / f"{name}.csv") as file:
            table.round(6).to_csv(file, index=False, lineterminator="\n")


def report(params: Params, said: str, metrics: dict[str, Any], slices: pd.DataFrame, results: list[Result]) -> Content:
    """What the report shows."""
    return Content(
        title="What the fine-tuning bought",
        verdict=said,
        facts={
            "profile": params.profile,
            "base model": str(params.value(f"profiles.{params.profile}.model.source")),
            "rows": str(params.value(f"profiles.{params.profile}.data.source")),
            "scored with": f"rouge-score {version('rouge_score')}'s ROUGE, "
            f"stemmer {'on' if params.section(Evaluate).use_stemmer else 'off'}",
            "intervals": f"{params.section(Evaluate).confidence:.0%}, BCa bootstrap over rows, "
            f"{params.section(Evaluate).resamples:,} resamples",
        },
        metrics=metrics,
        slices=[{str(key): value for key, value in line.items()} for line in slices.to_dict("records")],
        train_loss=read_curve(METRICS / "train_loss.csv", "train_loss"),
        validation_loss=read_curve(METRICS / "validation_loss.csv", "validation_loss"),
        rows=[result.model_dump() for result in results],
    )


def read_curve(path: Path, column: str) -> list[tuple[int, float]]:
    """(step, loss) for each line of a table that training wrote.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [(int(line["step"]), float(line[column])) for line in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path}: not there; make it with `dvc repro train`") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged; make it again with `dvc repro -f train`") from None


if __name__ == "__main__":
    main()
