"""Processes that share a step's rows train the adapter that one process trains, and end together."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from howto.launch import FAILED
from tests.conftest import ROOT, run_stage, wait_for_checkpoint

ADAPTER = "models/adapter/adapter_model.safetensors"


def edit(folder: Path, **values: object) -> None:
    """Set keys of the embedded profile, or of `train`, by the words before their value."""
    path = folder / "params.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    for key, value in values.items():
        at = next(n for n, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
        lines[at] = lines[at][: lines[at].index(f"{key}:")] + f"{key}: {value}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def losses(folder: Path) -> list[float]:
    with (folder / "metrics/train_loss.csv").open(encoding="utf-8") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("rows", [4, 8])
def test_two_processes_train_the_adapter_of_one(workplace: Path, rows: int) -> None:
    used = json.loads((workplace / "metrics/train.json").read_text(encoding="utf-8"))["rows"]["used"]
    assert used % rows, "the last step of an epoch was to be short"
    found = []
    for processes in (1, 2):
        edit(workplace, dropout=0.0, processes=processes, epochs=2)
        text = (workplace / "params.yaml").read_text(encoding="utf-8")
        text = text.replace("batch_size: 8 ", f"batch_size: {rows} ", 2)
        (workplace / "params.yaml").write_text(text, encoding="utf-8")
        done = run_stage(workplace, "stages.train")
        assert done.returncode == 0, done.stderr
        found.append((losses(workplace), load_file(workplace / ADAPTER)))
    (alone, adapter), (together, shared) = found
    assert together == pytest.approx(alone, rel=1e-4)
    for name, weight in adapter.items():
        assert (shared[name] - weight).norm() <= 1e-2 * weight.norm(), name


def test_two_processes_give_the_same_bytes_every_time(workplace: Path) -> None:
    edit(workplace, processes=2)
    bytes_of = []
    for _ in range(2):
        done = run_stage(workplace, "stages.train")
        assert done.returncode == 0, done.stderr
        bytes_of.append((workplace / ADAPTER).read_bytes())
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_goes_on_when_the_first_is_stopped(workplace: Path, number: signal.Signals) -> None:
    edit(workplace, processes=2, epochs=100)
    command = [sys.executable, "-m", "stages.train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=workplace, env=environment, stderr=subprocess.DEVNULL) as first:
        wait_for_checkpoint(workplace, first)
        others = psutil.Process(first.pid).children(recursive=True)
        first.send_signal(number)
        first.wait(timeout=60)
    assert others
    _, alive = psutil.wait_procs(others, timeout=30)
    assert alive == []


FAILING = """
import sys, torch
from howto.group import joined
from howto.launch import is_in_a_group, launch
from howto.stop import stops_cleanly
@stops_cleanly
def main():
    if not is_in_a_group():
        launch("failing", [], 2)
        return
    with joined(2, torch.device("cpu"), "2") as group:
        if group.rank == 1:
            sys.exit(3)
        group.add_up([torch.ones(1)] * 1000)
        group.add_up([torch.ones(1)] * 1000)
main()
"""


def test_the_first_does_not_wait_for_one_that_has_failed(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-m", "failing"], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1 and done.stderr == f"error: {FAILED}\n"


def test_what_stops_every_process_is_said_once(workplace: Path) -> None:
    edit(workplace, processes=2, max_grad_norm="1.0e+30", schedule="constant")
    text = (workplace / "params.yaml").read_text(encoding="utf-8")
    assert "learning_rate: 6.0e-3" in text
    (workplace / "params.yaml").write_text(text.replace("6.0e-3", "1.0e+30"), encoding="utf-8")
    done = run_stage(workplace, "stages.train")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1 and "the loss is nan in step" in done.stderr
