"""Score what base and adapter wrote for the held-out rows, and measure what the fine-tuning gained.

reads:   data/predictions/{base,adapter}.jsonl, data/prepared/test.jsonl, data/prepared/train.jsonl (for the baselines),
         data/predictions/general_{base,adapter}.json,
         metrics/train.json, metrics/{train_loss,validation_loss,validation_rougeL}.csv
params:  evaluate, general; for the report: profile, profiles.<profile>.model.source, profiles.<profile>.data
writes:  metrics/metrics.json (the numbers that runs are compared by), metrics/evaluation.json (all numbers),
         metrics/report.html, metrics/{rouge,slices,differences,lengths_and_scores}.csv (plots),
         log/hasil.jsonl (both models' answers to each row)
"""

import argparse
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from howto.core.atomic import write_json
from howto.core.config import Params
from howto.core.errors import reports_errors
from howto.core.output_lock import output_lock
from howto.core.paths import DVC_METRICS, EVALUATION, LOCK, METRICS, PREDICTIONS, REPORT, RESULTS, TEST, TRAIN, TRAINING
from howto.core.reference_words import check_references
from howto.core.schema import Row, read_rows, write_rows
from howto.evaluation.baselines import baseline_answers
from howto.evaluation.config import Evaluate
from howto.evaluation.general import chat_rows, cost_sentence, measure_general, read_general
from howto.evaluation.metrics import measure, summarize, verdict
from howto.evaluation.plots import group_rows, slice_table, write_plots
from howto.evaluation.predictions import MODELS, check_against_lock, read_predictions
from howto.evaluation.report import Content, read_curve, write_report
from howto.evaluation.results import side_by_side
from howto.evaluation.scoring import score
from howto.general.config import General
from howto.general.results import GeneralResults, general_path
from howto.params import read_params


@reports_errors
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params()
    with output_lock(DVC_METRICS):
        evaluate(params, params.section(Evaluate))


def evaluate(params: Params, config: Evaluate) -> None:
    """Load, score, measure and write, in the working directory.

    Raise UserError if an input is missing, damaged, or from another run, or the tokenizer sees few words of references.
    """
    rows, train = read_rows(TEST, Row), read_rows(TRAIN, Row)
    answers = read_predictions(PREDICTIONS, rows, TEST)
    decoding = {key: params.value(key) for key in ("infer", f"profiles.{params.profile}.infer")}
    for model in MODELS:
        check_against_lock(PREDICTIONS / f"{model}.jsonl", LOCK, decoding, params.path)
    general = read_cost(params, decoding)

    for warning in check_references(rows, config.tokenizer):
        print(f"evaluate: warning: {warning}", file=sys.stderr)

    baselines = baseline_answers(rows, train, seed=config.seed, tokenizer=config.tokenizer)
    scores = score(rows, answers, baselines, use_stemmer=config.use_stemmer, tokenizer=config.tokenizer, steps=config)

    evaluation = {**measure(rows, answers, scores, config), **measure_general(general, config)}
    metrics = summarize(evaluation, TRAINING)
    conclusion = verdict(evaluation, config.confidence)
    cost = cost_sentence(evaluation)
    base, adapter = (scores.models[model].row_means for model in MODELS)
    slices = slice_table(group_rows(rows, scores.reference_words), base, adapter, config)
    results = side_by_side(rows, answers, scores)
    content = Content(
        title="What the fine-tuning bought",
        tokenizer=config.tokenizer,
        verdict=conclusion,
        cost=cost,
        facts=facts(params, config),
        metrics=evaluation,
        slices=[{str(key): value for key, value in line.items()} for line in slices.to_dict("records")],
        train_loss=read_curve(METRICS / "train_loss.csv"),
        validation_loss=read_curve(METRICS / "validation_loss.csv"),
        validation_rouge_l=read_curve(METRICS / "validation_rougeL.csv"),
        rows=results,
        chat=chat_rows(general),
    )

    write_rows(RESULTS, results)
    write_plots(METRICS, scores, slices)
    write_report(REPORT, content)
    write_json(EVALUATION, evaluation)
    write_json(DVC_METRICS, metrics)
    print(f"evaluate: {f'{conclusion} {cost}'.strip()} -> {REPORT}")


def read_cost(params: Params, decoding: dict[str, Any]) -> Mapping[str, GeneralResults]:
    """Return both models' results on general text and plain questions; empty ones if `general` asks for neither."""
    config = params.section(General)
    if not (config.text or config.chat):
        return {model: GeneralResults() for model in MODELS}
    values = {**decoding, "general": params.value("general")}
    results = read_general(PREDICTIONS)
    for model in MODELS:
        check_against_lock(general_path(PREDICTIONS, model), LOCK, values, params.path, f"general@{model}")
    return results


def facts(params: Params, config: Evaluate) -> dict[str, str]:
    """Return what the run was made with, for the foot of the report."""
    words = f" on unicode-segmentation-rs {version('unicode_segmentation_rs')}'s words"
    of_words = words if config.tokenizer == "unicode" else ""
    data = params.value(f"profiles.{params.profile}.data")
    sources = [f"{name}: {one['source']}" for name, one in sorted((data.get("sources") or {}).items())]
    stemmer = "on" if config.use_stemmer else "off"
    return {
        "profile": params.profile,
        "base model": str(params.value(f"profiles.{params.profile}.model.source")),
        "rows": ", ".join(sources) or data["source"],
        "scored with": f"rouge-score {version('rouge_score')}'s ROUGE{of_words}, stemmer {stemmer}",
        "intervals": f"{config.confidence:.0%}, BCa bootstrap over rows, {config.resamples:,} resamples",
    }


if __name__ == "__main__":
    main()
