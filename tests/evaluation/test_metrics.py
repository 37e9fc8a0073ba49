"""Every number of a run equals its definition, computed by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from howto.core.errors import UserError
from howto.core.schema import Prediction, Row
from howto.evaluation.baselines import LABELS, baseline_answers
from howto.evaluation.metrics import measure, summarize, verdict
from howto.evaluation.rouge import KINDS
from howto.evaluation.scoring import score
from tests.support.answers import CONFIG, prediction, row

STEPS, SHADE = "1. Go home.\n2. Sleep well.", "A fern needs shade."
ROWS = [row(0, STEPS), row(1, SHADE)]


def measured(base: list[list[str]], adapter: list[list[str]], rows: list[Row] = ROWS) -> dict[str, Any]:
    """The numbers of answers [rows][seeds]."""
    answers = {
        model: [[prediction(n, text, seed) for seed, text in enumerate(texts)] for n, texts in enumerate(of_model)]
        for model, of_model in (("base", base), ("adapter", adapter))
    }
    return measured_predictions(answers, rows)


def measured_predictions(answers: dict[str, list[list[Prediction]]], rows: list[Row]) -> dict[str, Any]:
    scores = score(rows, answers, baseline_answers(rows, rows, seed=0), use_stemmer=True)
    return measure(rows, answers, scores, CONFIG)


def test_an_empty_answer_is_counted_and_scores_0_and_the_reference_itself_1() -> None:
    found = measured([[""], [""]], [[STEPS], [SHADE]])
    assert (found["rows"], found["procedural_rows"], found["seeds"]) == (2, 1, 1)
    for kind in KINDS:
        assert (found["base"][kind], found["adapter"][kind], found["delta"][kind]) == (0, 1, 1)
    assert found["base"]["empty"] == 2 and found["adapter"]["empty"] == 0
    assert found["ceiling"] == {"reference": 1.0} and found["baselines"].keys() == LABELS.keys()
    assert [found["delta"][name] for name in ("wins", "ties", "losses")] == [2, 0, 0]


def test_answers_are_described_by_hand_computed_numbers() -> None:
    rows = [row(0, STEPS), row(1, SHADE), row(2, "1. A b.\n2. C d.\n3. E f.")]
    found = measured([[""]] * 3, [["1. Go home.\n2. Sleep."], ["go go go go go"], ["Well:\n1. A.\n2. B."]], rows)
    adapter = found["adapter"]
    assert adapter["well_numbered"] == 0.5  # the last one has a line that is no step
    assert adapter["steps_in_order"] == 1.0
    assert adapter["steps_off"] == 0.5  # 2 of 2 steps, and 2 of 3
    assert adapter["length_ratio"] == pytest.approx((5 + 5 + 5) / (6 + 4 + 9), abs=1e-6)
    assert adapter["repeated"] == pytest.approx((0 + 1 / 2 + 0) / 3, abs=1e-6)  # "go go go go" twice
    assert adapter["copied"] == 0
    assert "perplexity" not in adapter and "repeated" not in found["base"]


def test_perplexity_is_over_all_reference_tokens_that_the_model_could_read() -> None:
    predictions = [
        [prediction(0, "", tokens=30, log_probability=-1.0)],
        [prediction(1, "", tokens=10, log_probability=-3.0)],
        [prediction(2, "", tokens=99)],  # the reference was too long
    ]
    found = measured_predictions({"base": predictions, "adapter": predictions}, [*ROWS, row(2, "x")])
    assert found["adapter"]["perplexity"] == pytest.approx(math.exp((30 + 30) / 40), abs=1e-4)


def test_the_best_of_several_references_counts() -> None:
    rows = [row(0, STEPS, references=("Stay where you are.", "Run away.")), row(1, SHADE)]
    found = measured([["Run away."], [""]], [[STEPS], ["Run away."]], rows)
    assert found["base"]["rougeL"] == found["adapter"]["rougeL"] == 0.5
    assert found["ceiling"]["reference"] == 1


def test_seeds_are_averaged_within_a_row_and_their_spread_is_separate() -> None:
    found = measured([["", ""], ["", ""]], [[STEPS, ""], [SHADE, SHADE]])
    assert found["seeds"] == 2 and found["adapter"]["empty"] == 1
    assert found["adapter"]["rougeL"] == pytest.approx((0.5 + 1) / 2)
    spread = pytest.approx(np.std([1.0, 0.5], ddof=1), abs=1e-6)
    assert found["adapter"]["rougeL_seed_sd"] == found["delta"]["rougeL_seed_sd"] == spread
    assert found["base"]["rougeL_seed_sd"] == 0


@pytest.mark.parametrize(
    ("delta", "best", "expected"),
    [
        ((0.1, 0.05, 0.15, 0.01), 0.2, "is better: +0.1000 ROUGE-L"),
        ((-0.1, -0.15, -0.05, 0.01), 0.2, "is worse: -0.1000"),
        ((0.01, -0.02, 0.04, 0.4), 0.2, "no clear difference"),
        ((0.1, 0.05, 0.15, 0.3), 0.2, "no clear difference"),  # an interval that is too narrow
        ((0.1, 0.05, 0.15, 0.01), 0.5, "The best baseline, the nearest training answer, scores 0.5000."),
    ],
)
def test_the_verdict_is_what_the_numbers_support(delta: tuple[float, ...], best: float, expected: str) -> None:
    evaluation = {
        "rows": 500,
        "adapter": {"rougeL": 0.4},
        "delta": dict(zip(("rougeL", "rougeL_low", "rougeL_high", "p_value"), delta, strict=True)),
        "baselines": {"echo_intent": 0.1, "nearest_answer": best},
    }
    assert expected in verdict(evaluation, 0.95)
    assert ("does not beat it" in verdict(evaluation, 0.95)) == (best > 0.4)


EVALUATION = {
    "base": {"rougeL": 0.09, "rouge1": 0.1},
    "adapter": {"rougeL": 0.61, "rougeL_low": 0.57},
    "delta": {"rougeL": 0.52, "rougeL_low": 0.48, "rougeL_high": 0.56, "p_value": 0.0001, "wins": 9},
    "baselines": {"echo_intent": 0.2, "nearest_answer": 0.4},
}


@pytest.mark.parametrize(("loss", "shown"), [(0.2319, {"val_loss": 0.2319}), (None, {})])
def test_the_metric_has_both_scores_their_difference_the_best_baseline_the_loss_and_the_size(
    tmp_path: Path, loss: float | None, shown: dict[str, float]
) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"validation_loss": loss, "trainable_parameters": 72192, "steps": 8}), encoding="utf-8")
    assert summarize(EVALUATION, path) == {
        "base": {"rougeL": 0.09},
        "adapter": {"rougeL": 0.61},
        "delta": {"rougeL": 0.52, "low": 0.48, "high": 0.56, "p_value": 0.0001},
        "baseline": {"rougeL": 0.4},
        **shown,
        "trainable_parameters": 72192,
    }


@pytest.mark.parametrize("text", [None, "", "[]", '{"validation_loss": 1.0}', '{"validation_loss": "low", "train'])
def test_a_missing_or_damaged_training_summary_is_one_line_with_the_command_that_makes_it(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "train.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"train\.json: .*`dvc repro .*train`"):
        summarize(EVALUATION, path)
