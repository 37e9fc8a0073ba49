"""The number: scores of generated text alone, with intervals and floors, each what its definition says."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from howto.core.schema import Prediction, Row, read_rows
from howto.evaluation.config import Evaluate
from howto.evaluation.metrics import measure, verdict
from howto.evaluation.rouge import KINDS, Rouge
from howto.evaluation.scoring import FEW, Texts, score
from howto.evaluation.slices import groups, slice_table
from stages.evaluate import Result, score_all
from tests.conftest import ROOT, run_stage

PARAMS = Evaluate(use_stemmer=True, confidence=0.95, resamples=500, seed=0, embedding_model=None)
STEPS, SHADE = "1. Go home.\n2. Sleep well.", "A fern needs shade."


def row(number: int, output: str, *, context: str = "", category: str = "c") -> Row:
    text = f"intent {number}\n\n{context}" if context else f"intent {number}"
    return Row(id=str(number), category=category, instruction="Do.", input=text, context=context, output=output)


ROWS = [row(0, STEPS), row(1, SHADE)]


def prediction(number: int, text: str, seed: int = 0, **more: Any) -> Prediction:
    return Prediction(
        id=str(number),
        seed=seed,
        text=text,
        prompt_tokens=1,
        new_tokens=len(text.split()),
        stop=more.get("stop", "eos"),
        reference_tokens=more.get("reference_tokens", 1),
        reference_log_probability=more.get("reference_log_probability"),
    )


def measured(base: list[list[str]], adapter: list[list[str]], rows: list[Row] = ROWS, **more: Any) -> dict[str, Any]:
    """The metrics of answers [rows][seeds]."""
    predictions = {
        model: [
            [prediction(number, text, seed, **more) for seed, text in enumerate(texts)]
            for number, texts in enumerate(answers)
        ]
        for model, answers in (("base", base), ("adapter", adapter))
    }
    return measure(rows, predictions, score_all(rows, rows, predictions, PARAMS), PARAMS)


def test_an_empty_answer_is_counted_and_scores_0_and_the_reference_itself_1() -> None:
    metrics = measured([[""], [""]], [[STEPS], [SHADE]])
    assert metrics["rows"] == 2 and metrics["procedural_rows"] == 1 and metrics["seeds"] == 1
    for kind in KINDS:
        assert metrics["base"][kind] == 0 and metrics["adapter"][kind] == 1 and metrics["delta"][kind] == 1
    assert metrics["base"]["empty"] == 2 and metrics["adapter"]["empty"] == 0
    assert metrics["ceiling"] == {"reference": 1.0}
    assert (metrics["delta"]["wins"], metrics["delta"]["ties"], metrics["delta"]["losses"]) == (2, 0, 0)
    assert set(metrics["floors"]) == {"echo_intent", "echo_context", "random_answer", "nearest_answer"}


def test_a_model_against_itself_shows_no_difference() -> None:
    same = [["1. Go.\n2. Stop."], ["Shade."]]
    metrics = measured(same, same)
    assert metrics["delta"]["rougeL"] == metrics["delta"]["rougeL_low"] == metrics["delta"]["rougeL_high"] == 0
    assert metrics["delta"]["p_value"] == 1 and metrics["delta"]["ties"] == 2
    assert verdict(metrics, 0.95).startswith("No difference that 2 held-out rows can show: +0.0000 ROUGE-L, 95%")


def test_answers_are_described_by_hand_computed_numbers() -> None:
    rows = [row(0, STEPS), row(1, SHADE), row(2, "1. A b.\n2. C d.\n3. E f.")]
    adapter = [["1. Go home.\n2. Sleep."], ["go go go go go"], ["Well:\n1. A.\n2. B."]]
    metrics = measured([[""], [""], [""]], adapter, rows)["adapter"]
    assert metrics["well_numbered"] == 0.5  # the last one has a line that is no step
    assert metrics["steps_in_order"] == 1.0
    assert metrics["steps_off"] == 0.5  # 2 of 2 steps, and 2 of 3
    assert metrics["length_ratio"] == pytest.approx((5 + 5 + 5) / (6 + 4 + 9), abs=1e-6)
    assert metrics["repeated"] == pytest.approx((0 + 1 / 2 + 0) / 3, abs=1e-6)  # "go go go go" twice
    assert metrics["copied"] == 0
    assert "perplexity" not in metrics


def test_perplexity_is_that_of_all_reference_tokens_together() -> None:
    metrics = measured([[""], [""]], [["a"], ["b"]], reference_tokens=10, reference_log_probability=-1.5)
    assert metrics["base"]["perplexity"] == pytest.approx(math.exp(1.5), abs=1e-4)
    predictions = [
        [prediction(0, "", reference_tokens=30, reference_log_probability=-1.0)],
        [prediction(1, "", reference_tokens=10, reference_log_probability=-3.0)],
        [prediction(2, "", reference_tokens=99, reference_log_probability=None)],  # too long to be read
    ]
    rows = [*ROWS, row(2, "x")]
    both = {"base": predictions, "adapter": predictions}
    found = measure(rows, both, score_all(rows, rows, both, PARAMS), PARAMS)
    assert found["adapter"]["perplexity"] == pytest.approx(math.exp((30 + 30) / 40), abs=1e-4)


def test_of_several_references_the_best_one_counts() -> None:
    rows = [row(0, STEPS).model_copy(update={"references": ("Stay where you are.", "Run away.")}), row(1, SHADE)]
    metrics = measured([["Run away."], [""]], [[STEPS], ["Run away."]], rows)
    assert metrics["base"]["rougeL"] == 0.5 and metrics["adapter"]["rougeL"] == 0.5
    assert metrics["ceiling"]["reference"] == 1


def test_seeds_are_averaged_within_a_row_and_their_spread_stands_apart() -> None:
    metrics = measured([["", ""], ["", ""]], [[STEPS, ""], [SHADE, "A fern needs shade."]])
    assert metrics["seeds"] == 2
    assert metrics["adapter"]["rougeL"] == pytest.approx((0.5 + 1) / 2)
    assert metrics["adapter"]["rougeL_seed_sd"] == pytest.approx(np.std([1.0, 0.5], ddof=1), abs=1e-6)
    assert metrics["base"]["rougeL_seed_sd"] == 0
    assert metrics["adapter"]["empty"] == 1 and metrics["adapter"]["ended_by_eos"] == 1


@pytest.mark.parametrize(
    ("delta", "floor", "said"),
    [
        ((0.1, 0.05, 0.15), 0.2, "is better: +0.1000 ROUGE-L, 95% interval [+0.0500, +0.1500], on 500 held-out rows"),
        ((-0.1, -0.15, -0.05), 0.2, "is worse: -0.1000"),
        ((0.01, -0.02, 0.04), 0.2, "No difference that 500 held-out rows can show"),
        ((0.1, 0.05, 0.15), 0.2, "The highest floor, the nearest training answer, is at 0.2000."),
        ((0.1, 0.05, 0.15), 0.5, "Yet it scores no more (0.4000) than the nearest training answer (0.5000)"),
    ],
)
def test_the_verdict_says_what_the_numbers_support(delta: tuple[float, ...], floor: float, said: str) -> None:
    metrics = {
        "rows": 500,
        "adapter": {"rougeL": 0.4},
        "delta": dict(zip(("rougeL", "rougeL_low", "rougeL_high"), delta, strict=True)),
        "floors": {"echo_intent": 0.1, "nearest_answer": floor},
    }
    assert said in verdict(metrics, 0.95)


def test_rows_fall_into_groups_and_each_slice_holds_all_of_them() -> None:
    rows = [row(n, "word " * length, category=c) for n, (length, c) in enumerate([(24, "b"), (25, "a"), (200, "a")])]
    rows.append(row(3, STEPS, context="A text."))
    words = np.array([24, 25, 200, 6])
    procedural = np.array([False, False, False, True])
    found = groups(rows, words, procedural)
    named = {(of, name): which.nonzero()[0].tolist() for of, name, which in found}
    assert named["category", "a"] == [1, 2] and named["category", "c"] == [3]
    assert named["reference length", "1 to 24 words"] == [0, 3]
    assert named["reference length", "25 to 74 words"] == [1]
    assert named["reference length", "150 words and more"] == [2]
    assert ("reference length", "75 to 149 words") not in named
    assert named["context", "with a context"] == [3] == named["reference", "numbered steps"]
    for of in ("category", "reference length", "context", "reference"):
        assert sorted(n for (slice_, _), which in named.items() if slice_ == of for n in which) == [0, 1, 2, 3]


def test_a_group_has_an_interval_from_ten_rows_on() -> None:
    base, adapter = np.linspace(0, 0.4, 19), np.linspace(0.5, 0.7, 19)
    many = np.arange(19) < 10
    table = slice_table([("category", "many", many), ("category", "few", ~many)], base, adapter, PARAMS)
    line, few = table.iloc[0], table.iloc[1]
    assert (line["rows"], line["base"]) == (10, pytest.approx(base[:10].mean(), abs=1e-6))
    assert line["delta_low"] < line["delta"] < line["delta_high"]
    assert few["rows"] == 9 and few["delta"] > 0 and math.isnan(few["delta_low"]) and math.isnan(few["base_high"])


def test_many_rows_are_scored_by_several_processes_to_the_same_numbers() -> None:
    texts = [Texts((f"step {n} of many",), "p", (f"step {n}", "of many steps"), ("many",)) for n in range(FEW // 2 + 1)]
    many = score(texts, use_stemmer=True)
    few = score(texts[:10], use_stemmer=True)
    assert len(many.rouge) == len(texts)
    np.testing.assert_array_equal(many.rouge[:10], few.rouge)
    np.testing.assert_array_equal(many.floors[:10], few.floors)


def test_the_files_of_a_run_agree_with_each_other(finished: Path) -> None:
    metrics = json.loads((finished / "metrics/metrics.json").read_text(encoding="utf-8"))
    results = [Result.model_validate_json(line) for line in (finished / "log/hasil.jsonl").open(encoding="utf-8")]
    rows = read_rows(finished / "data/prepared/test.jsonl", Row)
    assert [result.id for result in results] == [row.id for row in rows] and metrics["rows"] == len(rows)
    rouge = Rouge(use_stemmer=True)
    for model in ("base", "adapter"):
        scores = [getattr(result, f"{model}_rougeL") for result in results]
        assert metrics[model]["rougeL"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
        own = rouge.score([rouge.tokens(results[0].reference)], rouge.tokens(getattr(results[0], model)))
        assert scores[0] == round(own["rougeL"].fmeasure, 6)
    difference = metrics["adapter"]["rougeL"] - metrics["base"]["rougeL"]
    assert metrics["delta"]["rougeL"] == pytest.approx(difference, abs=2e-6)
    tables = {}
    for name in ("slices", "rouge", "differences", "lengths_and_scores"):
        with (finished / f"metrics/{name}.csv").open(encoding="utf-8") as file:
            tables[name] = list(csv.DictReader(file))
    assert {line["group"] for line in tables["slices"] if line["slice"] == "category"} == {r.category for r in rows}
    assert sum(int(line["rows"]) for line in tables["differences"]) == len(rows)
    assert len(tables["lengths_and_scores"]) == 2 * len(rows)
    by_metric = {(line["model"], line["metric"]): float(line["fmeasure"]) for line in tables["rouge"]}
    for kind in KINDS:
        assert by_metric["adapter", kind] == pytest.approx(metrics["adapter"][kind], abs=1e-6)
    report = (finished / "metrics/report.html").read_text(encoding="utf-8")
    assert f"{metrics['delta']['rougeL']:+.4f} ROUGE-L" in report


def test_metrics_are_numbers_alone(finished: Path) -> None:
    def leaves(value: Any) -> list[Any]:
        return [leaf for part in value.values() for leaf in leaves(part)] if isinstance(value, dict) else [value]

    metrics = json.loads((finished / "metrics/metrics.json").read_text(encoding="utf-8"))
    assert all(isinstance(leaf, int | float) and not isinstance(leaf, bool) for leaf in leaves(metrics))


def test_the_comparison_is_printed_with_floors_and_answers_side_by_side(finished: Path) -> None:
    done = run_stage(finished, "howto", "compare", "--rows", "3")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((finished / "metrics/metrics.json").read_text(encoding="utf-8"))
    for part in ("base", "adapter", "delta"):
        assert f"{metrics[part]['rougeL']:.4f}" in done.stdout
    for floor in metrics["floors"].values():
        assert f"{floor:.4f}" in done.stdout
    assert done.stdout.count("base model (") == 3


def test_echoing_the_context_scores_the_published_floor_on_dollyeval(real_data: Path) -> None:
    rouge = Rouge(use_stemmer=True)
    lines = (real_data / "dolly/test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    scores = [
        rouge.rouge_l(rouge.tokens(row["response"]), rouge.tokens(row["context"] or row["instruction"])).fmeasure
        for row in rows
    ]
    assert 100 * sum(scores) / len(scores) == pytest.approx(21.06, abs=0.005)


@pytest.mark.parametrize("stage", ["fetch_data", "prepare", "evaluate"])
def test_stages_that_need_no_torch_import_none(stage: str) -> None:
    code = f"import sys, stages.{stage}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_evaluate_runs_to_its_end_without_torch(workplace: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['evaluate']; import stages.evaluate as stage\n"
        "stage.main(); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def edited(folder: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    path = folder / "data/predictions/adapter.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[2:], "2 of the "),
        (lambda lines: lines[:-1], "1 of the "),
        (lambda lines: [*lines, lines[0]], "a second answer to row "),
        (
            lambda lines: [*lines, {**lines[0], "id": "0123456789abcdef"}],
            "answers row 0123456789abcdef, which is not in",
        ),
        (lambda lines: [{**line, "seed": 5} for line in lines], "base has the seeds [0], adapter [5]"),
        (lambda lines: [{**lines[0], "seed": 1}, *lines], "have no answer of seed 1"),
        (lambda lines: [{**lines[0], "text": None}, *lines[1:]], "adapter.jsonl:1: field 'text'"),
        (lambda lines: [{k: v for k, v in lines[0].items() if k != "seed"}, *lines[1:]], "field 'seed' is missing"),
        (lambda lines: [], "no predictions in it"),
    ],
)
def test_predictions_that_are_not_those_of_the_test_are_one_line(
    workplace: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]], said: str
) -> None:
    edited(workplace, change)
    (workplace / "metrics/metrics.json").unlink()
    done = run_stage(workplace, "stages.evaluate")
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (workplace / "metrics/metrics.json").exists()


def test_rows_may_stand_in_another_order(workplace: Path) -> None:
    before = (workplace / "metrics/metrics.json").read_bytes()
    edited(workplace, lambda lines: lines[::-1])
    done = run_stage(workplace, "stages.evaluate")
    assert done.returncode == 0 and (workplace / "metrics/metrics.json").read_bytes() == before, done.stderr


def lock_of(folder: Path, **more: Any) -> None:
    """A dvc.lock that knows the predictions as they are."""
    import hashlib

    path = "data/predictions/adapter.jsonl"
    md5 = hashlib.md5((folder / path).read_bytes(), usedforsecurity=False).hexdigest()
    infer = {
        "max_new_tokens": 48, "max_prompt_tokens": None, "temperature": 0.0, "top_p": 1.0, "top_k": None,
        "repetition_penalty": 1.0, "no_repeat_ngram_size": None, "stop": [], "seeds": [0], **more,
    }  # fmt: skip
    stage = {"outs": [{"path": path, "md5": md5}], "params": {"params.yaml": {"infer": infer}}}
    lock = {"schema": "2.0", "stages": {"infer@adapter": stage}}
    (folder / "dvc.lock").write_text(json.dumps(lock), encoding="utf-8")  # JSON is YAML


def test_predictions_of_another_model_or_other_params_than_dvc_lock_knows_are_one_line(workplace: Path) -> None:
    lock_of(workplace)
    assert run_stage(workplace, "stages.evaluate").returncode == 0
    lock_of(workplace, temperature=1.0)
    done = run_stage(workplace, "stages.evaluate")
    assert done.returncode == 1 and "made with other params than params.yaml has now (infer)" in done.stderr
    lock_of(workplace)
    edited(workplace, lambda lines: [{**lines[0], "text": "of another model"}, *lines[1:]])
    done = run_stage(workplace, "stages.evaluate")
    assert done.returncode == 1 and "not the file that dvc.lock knows" in done.stderr
    assert done.stderr.count("\n") == 1
    (workplace / "dvc.lock").write_text("stages: [", encoding="utf-8")
    done = run_stage(workplace, "stages.evaluate")
    assert done.returncode == 1 and "dvc.lock: damaged" in done.stderr and done.stderr.count("\n") == 1
