"""The number: ROUGE-L of generated text alone, with its interval and its floors."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rouge_score import rouge_scorer

from howto.interval import bootstrap_interval
from howto.params.evaluate import Evaluate
from howto.rouge import RougeL
from howto.rows import Prediction, Row, read_rows
from stages.evaluate import Result, measure
from tests.conftest import ROOT, run_stage

PARAMS = Evaluate(use_stemmer=True, confidence=0.95, resamples=500, seed=0)


def test_rouge_l_is_hand_computed_and_the_packages_own() -> None:
    rouge = RougeL(use_stemmer=False)
    # longest common subsequence "the cat the mat": 4 of 6 reference words, 4 of 5 of the answer's
    reference, answer = "the cat sat on the mat", "the cat hit the mat"
    precision, recall = 4 / 5, 4 / 6
    assert rouge(reference, answer) == pytest.approx(2 * precision * recall / (precision + recall))
    own = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False).score(reference, answer)["rougeL"].fmeasure
    assert rouge(reference, answer) == own


def test_an_empty_answer_scores_0_and_the_reference_itself_1() -> None:
    rouge = RougeL(use_stemmer=True)
    assert rouge("Water the fern.", "") == 0
    assert rouge("Water the fern.", "Water the fern.") == 1


def test_a_stemmer_matches_word_forms() -> None:
    assert RougeL(use_stemmer=True)("watering plants", "water plant") == 1
    assert RougeL(use_stemmer=False)("watering plants", "water plant") == 0


def rows_and_predictions(answers: dict[str, list[str]]) -> tuple[list[Row], dict[str, list[Prediction]]]:
    references = ["1. Go home.\n2. Sleep well.", "A fern needs shade."]
    rows = [
        Row(id=str(n), category="c", instruction="Do.", input=f"intent {n}", context="", output=reference)
        for n, reference in enumerate(references)
    ]
    return rows, {
        model: [
            Prediction(id=str(n), text=text, prompt_tokens=1, new_tokens=len(text.split()), stop="eos")
            for n, text in enumerate(texts)
        ]
        for model, texts in answers.items()
    }


def measured(answers: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    rows, predictions = rows_and_predictions(answers)
    rouge = RougeL(use_stemmer=True)
    scores = {
        model: [rouge(row.output, p.text) for row, p in zip(rows, found, strict=True)]
        for model, found in predictions.items()
    }
    return measure(rows, predictions, scores, rouge, PARAMS)


def test_an_empty_prediction_is_counted_and_scores_0() -> None:
    metrics = measured({"base": ["", ""], "adapter": ["1. Go home.\n2. Sleep well.", "A fern needs shade."]})
    assert metrics["base"]["rougeL"] == 0 and metrics["base"]["empty"] == 2
    assert metrics["adapter"]["rougeL"] == 1 and metrics["adapter"]["empty"] == 0
    assert metrics["delta"]["rougeL"] == 1
    assert metrics["base"]["well_numbered"] == 0 and metrics["adapter"]["well_numbered"] == 1
    assert metrics["rows"] == {"test": 2, "procedural": 1}


def test_a_model_against_itself_shows_no_difference() -> None:
    same = ["1. Go.\n2. Stop.", "Shade."]
    metrics = measured({"base": same, "adapter": same})
    assert metrics["delta"] == {"rougeL": 0, "rougeL_low": 0, "rougeL_high": 0}


def test_the_interval_holds_the_mean_and_narrows_with_more_rows() -> None:
    few = [0.1, 0.5, 0.3, 0.9, 0.2, 0.4]
    low, high = bootstrap_interval(few, confidence=0.95, resamples=2000, seed=0)
    assert low < sum(few) / len(few) < high
    narrow = bootstrap_interval(few * 20, confidence=0.95, resamples=2000, seed=0)
    assert narrow[1] - narrow[0] < (high - low) / 2
    assert bootstrap_interval(few, confidence=0.95, resamples=2000, seed=0) == (low, high)


def test_the_files_of_a_run_agree_with_each_other(finished: Path) -> None:
    metrics = json.loads((finished / "metrics/metrics.json").read_text(encoding="utf-8"))
    results = read_results(finished / "log/hasil.jsonl")
    rows = read_rows(finished / "data/prepared/test.jsonl", Row)
    assert [result.id for result in results] == [row.id for row in rows]
    rouge = RougeL(use_stemmer=True)
    for model in ("base", "adapter"):
        scores = [getattr(result, f"{model}_rougeL") for result in results]
        assert metrics[model]["rougeL"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
        assert scores[0] == round(rouge(results[0].reference, getattr(results[0], model)), 6)
    difference = metrics["adapter"]["rougeL"] - metrics["base"]["rougeL"]
    assert metrics["delta"]["rougeL"] == pytest.approx(difference, abs=2e-6)
    with (finished / "metrics/rouge_by_category.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert {line["category"] for line in table} == {row.category for row in rows}


def read_results(path: Path) -> list[Result]:
    return [Result.model_validate_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_comparison_is_printed_with_answers_side_by_side(finished: Path) -> None:
    done = run_stage(finished, "stages.evaluate", "--show", "3")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((finished / "metrics/metrics.json").read_text(encoding="utf-8"))
    for part in ("base", "adapter", "delta"):
        assert f"{metrics[part]['rougeL']:.4f}" in done.stdout
    assert done.stdout.count("base model (") == 3


def test_echoing_the_context_scores_the_published_floor_on_dollyeval(real_data: Path) -> None:
    rouge = RougeL(use_stemmer=True)
    lines = (real_data / "dolly/test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    scores = [rouge(row["response"], row["context"] or row["instruction"]) for row in rows]
    assert 100 * sum(scores) / len(scores) == pytest.approx(21.06, abs=0.005)


@pytest.mark.parametrize("stage", ["fetch_data", "prepare", "evaluate"])
def test_stages_that_need_no_torch_import_none(stage: str) -> None:
    code = f"import sys, stages.{stage}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
