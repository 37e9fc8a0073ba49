"""Collect the figures of the study from its DVC experiments. README.md has the commands that ran them.

python -m experiments.smollm2.collect

reads:   the commits of the experiments named in EXPERIMENTS
writes:  results.json, learning_curve.csv (for `dvc plots show`)
"""

from __future__ import annotations

import csv
import json
import subprocess
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.prepare import cpu_name
from howto.core.atomic import write_csv, write_json
from howto.core.errors import UserError, reports_errors

HERE = Path(__file__).parent
RANK_AND_RATE = [f"r{rank}-{rate}" for rank in (4, 8, 16) for rate in ("1.5e-3", "3e-3")]
ROWS = ["rows-60", "rows-120", "rows-240", "r8-3e-3"]  # the last one has all rows
EXPERIMENTS = [*RANK_AND_RATE, *ROWS[:-1]]


@reports_errors
def main() -> None:
    """Read each experiment from git, and write the results."""
    found = {name: figures(commit_of(name)) for name in EXPERIMENTS}
    date = datetime.now(UTC).date().isoformat()
    write_json(HERE / "results.json", {"cpu": cpu_name(), "date": date, "experiments": found})
    fields = ("rows", "validation_loss", "validation_rougeL")
    write_csv(HERE / "learning_curve.csv", [fields, *([found[name][field] for field in fields] for name in ROWS)])
    print(f"study: {len(found)} experiments -> {HERE / 'results.json'}")


def commit_of(name: str) -> str:
    """Return the commit of a DVC experiment. Raise UserError if there is none, or several."""
    lines = git("for-each-ref", "refs/exps", "--format=%(objectname) %(refname)").splitlines()
    commits = [line.split()[0] for line in lines if line.endswith(f"/{name}")]
    if len(commits) != 1:
        raise UserError(f"{name}: expected one experiment of this name, got {len(commits)}. README.md runs it.")
    return commits[0]


def figures(commit: str) -> dict[str, Any]:
    """Return what an experiment changed and found."""
    yaml = YAML(typ="safe")
    params, lock = (yaml.load(git("show", f"{commit}:./{name}")) for name in ("params.yaml", "dvc.lock"))
    train = json.loads(git("show", f"{commit}:./metrics/train.json"))
    (adapter,) = (out["md5"] for out in lock["stages"]["train"]["outs"] if out["path"] == "models/adapter")
    validations = csv.DictReader(StringIO(git("show", f"{commit}:./metrics/validation_rougeL.csv")))
    scores = {int(line["step"]): float(line["validation_rougeL"]) for line in validations}
    assert scores[train["kept_step"]] == train["validation_rougeL"]
    return {
        "commit": commit,
        "adapter_md5": adapter,
        "r": params["train"]["lora"]["r"],
        "learning_rate": params["profiles"]["smollm2"]["train"]["learning_rate"],
        "rows": train["rows"]["used"],
        **{key: train[key] for key in ("steps", "kept_step", "tokens", "validation_loss", "validation_rougeL")},
        "last_validation_rougeL": scores[train["steps"]],
    }


def git(*command: str) -> str:
    """Return what git prints."""
    return subprocess.run(["git", *command], cwd=HERE.parents[1], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
