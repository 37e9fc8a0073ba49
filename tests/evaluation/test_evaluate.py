"""The stage: its files agree with each other, and it stops on predictions that are not those of the test rows."""

import csv
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.flatten import flatten

from howto.core.errors import UserError
from howto.core.schema import Row, read_rows
from howto.evaluation.predictions import check_against_lock, read_predictions
from howto.evaluation.rouge import KINDS, Rouge
from howto.tools.cli import main as howto
from tests.conftest import ROOT
from tests.support.in_process import edit_params, run_here, run_stage_here

TEST, ADAPTER = Path("data/prepared/test.jsonl"), Path("data/predictions/adapter.jsonl")
Line = dict[str, Any]


def evaluation_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics/evaluation.json").read_text(encoding="utf-8")))


def test_the_files_of_a_run_agree_with_each_other_and_metrics_are_numbers_only(finished: Path) -> None:
    evaluation = evaluation_of(finished)
    results = [json.loads(line) for line in (finished / "log/hasil.jsonl").open(encoding="utf-8")]
    rows = read_rows(finished / TEST, Row)
    assert [result["id"] for result in results] == [row.id for row in rows] and evaluation["rows"] == len(rows)
    rouge = Rouge(use_stemmer=True)
    for model in ("base", "adapter"):
        scores = [result[f"{model}_rougeL"] for result in results]
        assert evaluation[model]["rougeL"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
        own = rouge.score([rouge.tokens(results[0]["reference"])], rouge.tokens(results[0][model]))
        assert scores[0] == round(own["rougeL"].fmeasure, 6)
        coverage = [result["steps"][model]["coverage"] for result in results if result["procedural"]]
        assert len(coverage) == evaluation[model]["step_coverage_rows"] == evaluation["procedural_rows"] > 0
        assert evaluation[model]["step_coverage"] == pytest.approx(sum(coverage) / len(coverage), abs=1e-5)
    tables = {}
    for name in ("slices", "rouge", "differences", "lengths_and_scores"):
        with (finished / f"metrics/{name}.csv").open(encoding="utf-8") as file:
            tables[name] = list(csv.DictReader(file))
    assert {line["group"] for line in tables["slices"] if line["slice"] == "category"} == {r.category for r in rows}
    assert not any(line["slice"] == "source" for line in tables["slices"])
    assert not any({"source", "history"} & result.keys() for result in results)
    assert sum(int(line["rows"]) for line in tables["differences"]) == len(rows)
    assert len(tables["lengths_and_scores"]) == 2 * len(rows)
    by_metric = {(line["model"], line["metric"]): float(line["fmeasure"]) for line in tables["rouge"]}
    for kind in KINDS:
        assert by_metric["adapter", kind] == pytest.approx(evaluation["adapter"][kind], abs=1e-6)
    metrics = json.loads((finished / "metrics/metrics.json").read_text(encoding="utf-8"))
    assert metrics["delta"]["rougeL"] == evaluation["delta"]["rougeL"]
    assert {type(leaf) for leaf in flatten({"a": metrics, "b": evaluation}).values()} == {int, float}
    report = (finished / "metrics/report.html").read_text(encoding="utf-8")
    assert f"{evaluation['delta']['rougeL']:+.4f} ROUGE-L" in report


def test_compare_prints_both_models_the_baselines_and_answers_side_by_side(finished: Path) -> None:
    done = run_here(howto, finished, "compare", "--rows", "3")
    evaluation = evaluation_of(finished)
    scores = [*(evaluation[part]["rougeL"] for part in ("base", "adapter", "delta")), *evaluation["baselines"].values()]
    assert all(f"{score:.4f}" in done.stdout for score in scores)
    assert done.stdout.count("base model: ") == 3


@pytest.mark.parametrize("code", ["stages.fetch_data", "stages.prepare", "stages.evaluate as stage; stage.main()"])
def test_stages_that_need_no_torch_import_none(workplace: Path, code: str) -> None:
    code = f"import sys; sys.argv = ['stage']; import {code}; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=workplace, env=environment).returncode == 0


RUSSIAN = "1. Откройте кран.\n2. Полейте {}.\n3. Закройте кран."
FRENCH = "1. Ouvrez le robinet du café.\n2. Arrosez {}.\n3. Fermez le robinet."


def in_language(folder: Path, text: str) -> None:
    """Give all prepared test rows this reference, and let the fine-tuned model answer it without a mistake."""
    for path, field in ((folder / TEST, "output"), (folder / ADAPTER, "text")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = [{**line, field: text.format(line["id"])} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_references_that_the_tokenizer_cannot_see_stop_the_stage_and_with_unicode_they_are_scored(
    workplace: Path,
) -> None:
    in_language(workplace, RUSSIAN)
    done = run_stage_here("evaluate", workplace)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "params.yaml: evaluate.tokenizer: " in done.stderr and "Set it to unicode." in done.stderr
    edit_params(workplace, "tokenizer: rouge_score ", "tokenizer: unicode ")
    done = run_stage_here("evaluate", workplace)
    assert done.returncode == 0 and done.stderr == ""
    evaluation = evaluation_of(workplace)
    assert evaluation["adapter"]["rougeL"] == evaluation["ceiling"]["reference"] == evaluation["unicode_words"] == 1
    assert evaluation["base"]["rougeL"] < 0.5
    assert "unicode-segmentation-rs" in (workplace / "metrics/report.html").read_text(encoding="utf-8")


def test_a_few_words_that_the_tokenizer_cannot_see_are_a_warning_with_their_share(workplace: Path) -> None:
    in_language(workplace, FRENCH)
    done = run_stage_here("evaluate", workplace)
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("evaluate: warning: 10.0% of the words in the references") and "café" in done.stderr
    assert "unicode_words" not in evaluation_of(workplace)


def test_scores_are_reported_by_source_and_history_is_in_the_results_of_rows_that_have_one(
    workplace: Path, tiny: Path
) -> None:
    edit_params(
        workplace,
        f"source: {tiny}/rows.jsonl\n",
        "sources: {tickets: {source: b.jsonl}, faq: {source: someone/faq, revision: abc}}\n",
    )
    history = [{"role": "user", "content": "May I?"}, {"role": "assistant", "content": "Yes."}]
    lines = [json.loads(line) for line in (workplace / TEST).read_text(encoding="utf-8").splitlines()]
    sources = ["faq" if number % 3 else "tickets" for number in range(len(lines))]
    lines = [{**line, "source": source} for line, source in zip(lines, sources, strict=True)]
    lines[0]["history"] = history
    (workplace / TEST).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    done = run_stage_here("evaluate", workplace)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in (workplace / "log/hasil.jsonl").open(encoding="utf-8")]
    assert [result["source"] for result in results] == sources
    assert results[0]["history"] == history and not any("history" in result for result in results[1:])
    with (workplace / "metrics/slices.csv").open(encoding="utf-8") as file:
        slices = [line for line in csv.DictReader(file) if line["slice"] == "source" and line["model"] == "adapter"]
    of_faq = [result["adapter_rougeL"] for result in results if result["source"] == "faq"]
    assert {line["group"]: int(line["rows"]) for line in slices} == {name: sources.count(name) for name in set(sources)}
    assert float(slices[0]["rougeL"]) == pytest.approx(sum(of_faq) / len(of_faq), abs=1e-5)
    report = (workplace / "metrics/report.html").read_text(encoding="utf-8")
    assert '"rows":"faq: someone/faq, tickets: b.jsonl"' in report and '"slice":"source"' in report


def edited(folder: Path, change: Callable[[list[Line]], list[Line]]) -> None:
    path = folder / ADAPTER
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: [{**lines[0], "seed": 1}, *lines], "lack an answer"),
        (lambda lines: lines[1:], "lack an answer"),
        (lambda lines: [{**lines[0], "id": "x"}, *lines[1:]], "answers row x, which is not in"),
        (lambda lines: [*lines, lines[0]], "a second answer to row "),
        (lambda lines: [{**line, "seed": 5} for line in lines], r"base has the seeds \[0\], adapter \[5\]"),
    ],
)
def test_predictions_that_do_not_answer_each_test_row_once_per_seed_are_an_error(
    workplace: Path, change: Callable[[list[Line]], list[Line]], problem: str
) -> None:
    rows = read_rows(workplace / TEST, Row)
    edited(workplace, change)
    with pytest.raises(UserError, match=problem):
        read_predictions(workplace / "data/predictions", rows, TEST)


def test_predictions_may_be_in_any_order(workplace: Path) -> None:
    rows = read_rows(workplace / TEST, Row)
    before = read_predictions(workplace / "data/predictions", rows, TEST)
    edited(workplace, lambda lines: lines[::-1])
    assert read_predictions(workplace / "data/predictions", rows, TEST) == before


@pytest.mark.parametrize(
    ("md5", "seeds", "problem"),
    [
        ("0" * 32, [0], "not the file that .*dvc.lock records"),
        (hashlib.md5(b"predictions").hexdigest(), [1], r"made with other params .*\(infer\)"),
    ],
)
def test_predictions_of_another_run_than_dvc_lock_records_are_an_error(
    tmp_path: Path, md5: str, seeds: list[int], problem: str
) -> None:
    path, lock = tmp_path / "adapter.jsonl", tmp_path / "dvc.lock"
    path.write_text("predictions", encoding="utf-8")
    params = {"params.yaml": {"infer": {"seeds": seeds}}}
    stage = {"outs": [{"path": str(path), "md5": md5}], "params": params}
    lock.write_text(json.dumps({"stages": {"infer@adapter": stage}}), encoding="utf-8")
    with pytest.raises(UserError, match=problem):
        check_against_lock(path, lock, {"infer": {"seeds": [0]}}, Path("params.yaml"))
