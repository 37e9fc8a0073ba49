"""Run the pipeline's stages in a folder of their own, with other params, and collect the figures of the run."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.prepare import cpu_name
from howto.core.atomic import write_json
from howto.core.errors import UserError

ROOT = Path(__file__).parents[1]
STAGES = {
    "fetch_model": ["stages.fetch_model"],
    "fetch_data": ["stages.fetch_data"],
    "prepare": ["stages.prepare"],
    "train": ["stages.train"],
    "infer_base": ["stages.infer", "--stage", "base"],
    "infer_adapter": ["stages.infer", "--stage", "adapter"],
    "evaluate": ["stages.evaluate"],
}
KEPT = ("rougeL", "rougeL_low", "rougeL_high", "ended_by_eos", "well_numbered", "length_ratio", "perplexity")


def params_with(changes: Mapping[str, Any]) -> str:
    """Return params.yaml with other values at some dotted keys; a value of None removes the key.

    Without `general`: studies compare scores on held-out rows.
    """
    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["general"]["text"] = params["general"]["chat"] = None
    for key, value in changes.items():
        *path, last = key.split(".")
        place = params
        for part in path:
            place = place[part]
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    text = io.StringIO()
    yaml.dump(params, text)
    return text.getvalue()


def in_precision(profile: str, precision: str) -> dict[str, Any]:
    """Return the params that a profile (by its dotted key) needs to run in this precision on a CPU."""
    if precision == "float32":
        return {}
    return {f"{profile}.machine.precision": precision, "machine.instruction_set": "native"}


def run_in(folder: Path, params: str) -> dict[str, Any]:
    """Run all stages in `folder` and return the figures. Stages that ended with these params do not run again.

    Raises:
        UserError: a stage failed; its own message stands above.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "stages.json"
    if not (folder / "params.yaml").is_file() or (folder / "params.yaml").read_text(encoding="utf-8") != params:
        (folder / "params.yaml").write_text(params, encoding="utf-8")
        done.unlink(missing_ok=True)
    path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    costs = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {}
    for name, arguments in STAGES.items():
        if name in costs:
            continue
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        )
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise UserError(f"{name}: the stage failed in {folder}, see above. Run the study again to resume.")
        costs[name] = {"seconds": round(time.monotonic() - start, 1), "peak_memory_mib": used.ru_maxrss // 1024}
        write_json(done, costs)
    return figures(folder, costs)


def figures(folder: Path, costs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run in `folder` found and cost: scores with intervals, baselines, groups, time and memory."""
    metrics = _json(folder / "metrics/evaluation.json")
    train, speed = _json(folder / "metrics/train.json"), _json(folder / "metrics/train_speed.json")
    with (folder / "metrics/slices.csv").open(encoding="utf-8", newline="") as file:
        groups = [line for line in csv.DictReader(file) if line["slice"] == "category"]
    return {
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))},
        "rows": {**_json(folder / "metrics/data.json")["splits"], "used": train["rows"]["used"]},
        "base": {key: metrics["base"][key] for key in KEPT if key in metrics["base"]},
        "adapter": {key: metrics["adapter"][key] for key in KEPT if key in metrics["adapter"]},
        "delta": metrics["delta"],
        "baselines": metrics["baselines"],
        "training": {
            **{key: train[key] for key in ("steps", "tokens", "kept_epoch", "validation_loss")},
            "tokens_per_second": speed["tokens_per_second"],
        },
        "categories": [
            {
                key: line[key] if key in ("group", "model") else float(line[key] or "nan")
                for key in line
                if key != "slice"
            }
            for line in groups
        ],
        "stages": dict(costs),
    }


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
