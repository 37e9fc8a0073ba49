"""Collect the figures of the study from its DVC experiments. README.md has the commands that ran them.

python -m experiments.smollm2.collect

reads:   the commits of the experiments, and their answers from DVC's cache
writes:  results.json, learning_curve.csv (which learning_curve.vl.json draws)
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
from howto.evaluation.config import Evaluate
from howto.params import read_params
from howto.tools.compare import compare_versions
from howto.tools.versions import versions

HERE = Path(__file__).parent
SEEDS = [f"seed-{seed}" for seed in (1, 2, 3, 4)]  # beside the run of the commit that they are based on
RANK_AND_RATE = [f"r{rank}-{rate}" for rank in (4, 8, 16) for rate in ("1.5e-3", "3e-3")]
ROWS = ["rows-60", "rows-120", "rows-240", "r8-3e-3"]  # the last one has all rows
MEASURES = ("validation_loss", "validation_rougeL")


@reports_errors
def main() -> None:
    """Read each experiment from git, and write the results."""
    base, _ = experiment(SEEDS[0])
    found = {name: figures(experiment(name)[1]) for name in [*SEEDS, *RANK_AND_RATE, *ROWS[:-1]]}
    runs = versions(",".join([base, *SEEDS]))
    over_seeds = compare_versions([], runs, read_params().section(Evaluate)).as_json()
    del over_seeds["results"]  # all answers, which `howto compare --of` prints
    write_json(
        HERE / "results.json",
        {
            "cpu": cpu_name(),
            "date": datetime.now(UTC).date().isoformat(),
            "over_seeds": over_seeds,
            "experiments": {"committed": figures(base), **found},
        },
    )
    write_curve({name: found[name] for name in ROWS})
    print(f"study: {len(found)} experiments -> {HERE / 'results.json'}")


def experiment(name: str) -> tuple[str, str]:
    """Return two commits: the one that a DVC experiment is based on, and its own.

    Raise UserError if there is no such experiment, or several.
    """
    lines = git("for-each-ref", "refs/exps", "--format=%(refname) %(objectname)").splitlines()
    found = [line.split() for line in lines if line.split()[0].endswith(f"/{name}")]  # refs/exps/12/3456.../name
    if len(found) != 1:
        raise UserError(f"{name}: expected one experiment of this name, got {len(found)}. README.md runs it.")
    ((ref, commit),) = found
    return "".join(ref.split("/")[2:4]), commit


def figures(commit: str) -> dict[str, Any]:
    """Return what an experiment trained with and found: on test rows, or on validation rows if only `train` ran."""
    yaml = YAML(typ="safe")
    params, lock = (yaml.load(git("show", f"{commit}:./{name}")) for name in ("params.yaml", "dvc.lock"))
    train = json.loads(git("show", f"{commit}:./metrics/train.json"))
    (adapter,) = (out["md5"] for out in lock["stages"]["train"]["outs"] if out["path"] == "models/adapter")
    losses, scores = (validations(commit, name) for name in MEASURES)
    profile = params["profiles"]["smollm2"]["train"]
    rows = train["rows"]["used"]
    found = {
        "commit": commit,
        "adapter_md5": adapter,
        "seed": params["train"]["seed"],
        "r": params["train"]["lora"]["r"],
        "learning_rate": profile["learning_rate"],
        "rows": rows,
        "rows_seen": min(rows, train["steps"] * profile["batch_size"]),
        **{key: train[key] for key in ("steps", "kept_step", "tokens", "validation_loss")},
    }
    if scores:
        kept, last = train["kept_step"], train["steps"]
        ends = {"last_validation_loss": losses[last], "last_validation_rougeL": scores[last]}
        return found | {"validation_rougeL": scores[kept], **ends}
    evaluation = json.loads(git("show", f"{commit}:./metrics/evaluation.json"))
    adapter_scores, chat = evaluation["adapter"], evaluation["chat"]["adapter"]
    return found | {
        **{key: adapter_scores[key] for key in ("rougeL", "ended_by_eos", "well_numbered", "step_coverage")},
        **evaluation["general"]["delta"],
        "chat_correct": chat["correct"],
        "chat_numbered": chat["numbered"],
    }


def write_curve(found: dict[str, dict[str, Any]]) -> None:
    """Write the validation loss and ROUGE-L of the kept and of the last adapter, by the number of rows."""
    lines = [
        [adapter, one["rows"], one["rows_seen"], *(one[prefix + measure] for measure in MEASURES)]
        for adapter, prefix in (("lowest loss", ""), ("last", "last_"))
        for one in found.values()
    ]
    write_csv(HERE / "learning_curve.csv", [["adapter", "rows", "rows_seen", *MEASURES], *lines])


def validations(commit: str, name: str) -> dict[int, float]:
    """Return one of the validation curves of metrics/, by step."""
    lines = csv.DictReader(StringIO(git("show", f"{commit}:./metrics/{name}.csv")))
    return {int(line["step"]): float(line[name]) for line in lines}


def git(*command: str) -> str:
    """Return what git prints."""
    return subprocess.run(["git", *command], cwd=HERE.parents[1], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
