"""Measure how long the evaluation of many answers takes: all metrics, baselines, intervals and the report.

python -m benchmarks.evaluate ROWS [--rows 15000]

ROWS is a JSONL file with Dolly's columns. The benchmark makes that many test rows, and as many training rows, from its
rows by replacing words. The base answers are other rows' responses. The adapter's are the references with every sixth
word replaced. It times `python -m stages.evaluate` in a folder of its own, start included. For comparison, it times
Google's `rouge-score` on a hundred of the rows.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import psutil

from benchmarks.prepare import COLUMNS, ROOT, cpu_name, perturbed, resident, samples
from benchmarks.train import read_instruction
from experiments.pipeline import params_with
from howto.core.atomic import write_json
from howto.core.schema import Prediction, Row, input_of, write_rows
from howto.evaluation.rouge import KINDS

RESULT = Path(__file__).parent / "results" / "evaluate.json"
GOOGLE_ROWS = 100


def main() -> None:
    """Make the rows, run the stage, and print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=15_000)
    arguments = parser.parse_args()
    real = [json.loads(line) for line in arguments.data.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, answers = make_files(folder, real, arguments.rows)
        start = time.perf_counter()
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen([sys.executable, "-m", "stages.evaluate"], cwd=folder, env=environment) as process:
            peak = max(resident(psutil.Process(process.pid)), *samples(process))
        seconds = time.perf_counter() - start
        if process.returncode:
            sys.exit("the stage failed")
        evaluation = json.loads((folder / "metrics/evaluation.json").read_text(encoding="utf-8"))
        report_mib = (folder / "metrics/report.html").stat().st_size / 2**20
    google = seconds_by_google([(row.output, answer) for row, answer in zip(rows, answers, strict=True)][:GOOGLE_ROWS])
    result = {
        "command": f"python -m benchmarks.evaluate {' '.join(sys.argv[1:])}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "rows": arguments.rows,
        "seconds": round(seconds, 1),
        "peak_memory_mib": round(peak / 2**20),
        "report_mib": round(report_mib, 1),
        "resamples": 10_000,
        "rouge_score_package_seconds_for_both_models_alone": round(google * 2 * arguments.rows / GOOGLE_ROWS),
        "adapter_rougeL": evaluation["adapter"]["rougeL"],
        "baselines": evaluation["baselines"],
    }
    print(json.dumps(result, indent=2))
    write_json(RESULT, result)


def make_files(folder: Path, real: list[dict[str, str]], count: int) -> tuple[list[Row], list[str]]:
    """Write what the stage reads, and return the test rows and the adapter's answers."""
    (folder / "params.yaml").write_text(params_with({}), encoding="utf-8")
    (folder / "metrics").mkdir()
    for name in ("train.json", "train_loss.csv", "validation_loss.csv", "validation_rougeL.csv"):
        shutil.copyfile(ROOT / "metrics" / name, folder / "metrics" / name)
    random = Random(0)
    words = sorted({word for row in real for word in row["response"].split(" ") if word.isascii()})
    instruction = read_instruction()

    def row(number: int) -> Row:
        made = {name: perturbed(real[number % len(real)][name], 1 / 3, words, random) for name in COLUMNS}
        return Row(
            id=f"{number:016x}",
            category=real[number % len(real)]["category"],
            instruction=instruction,
            input=input_of(made["instruction"], made["context"]),
            context=made["context"],
            output=made["response"],
        )

    rows, train = [row(number) for number in range(count)], [row(number) for number in range(count, 2 * count)]
    write_rows(folder / "data/prepared/test.jsonl", rows)
    write_rows(folder / "data/prepared/train.jsonl", train)
    answers = {
        "base": [train[(7 * number) % count].output for number in range(count)],
        "adapter": [perturbed(one.output, 1 / 6, words, random) for one in rows],
    }
    for model, texts in answers.items():
        predictions = [
            Prediction(
                id=one.id,
                seed=0,
                text=text,
                prompt_tokens=1,
                new_tokens=len(text),
                stop="eos",
                reference_tokens=1,
                reference_log_probability=-1.0,
            )
            for one, text in zip(rows, texts, strict=True)
        ]
        write_rows(folder / f"data/predictions/{model}.jsonl", predictions)
    return rows, answers["adapter"]


def seconds_by_google(pairs: list[tuple[str, str]]) -> float:
    """Return the seconds that Google's package takes for all kinds of ROUGE."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(list(KINDS), use_stemmer=True)
    scorer.score("warm", "up")
    start = time.perf_counter()
    for reference, answer in pairs:
        scorer.score(reference, answer)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
