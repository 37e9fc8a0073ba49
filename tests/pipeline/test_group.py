"""Processes that share a step's rows compute what one process computes, and end together."""

import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import run_stage
from tests.support.in_process import edit_params, run_stage_here
from tests.support.processes import newest_checkpoint, start_stage, wait_until

ADAPTER = "models/adapter/adapter_model.safetensors"


@pytest.mark.parametrize("packing", ["true", "false"])
def test_in_each_step_two_processes_have_the_loss_of_one(packing: str, workplace: Path) -> None:
    for old, new in {"dropout: 0.05 ": "dropout: 0.0 ", "packing: true ": f"packing: {packing} "}.items():
        edit_params(workplace, old, new)
    edit_params(workplace, "micro_batch_size: 8 ", "micro_batch_size: 2 ")
    losses = []
    for processes in (1, 2):
        done = run_stage_here("train", workplace) if processes == 1 else run_stage(workplace, "stages.train")
        assert done.returncode == 0, done.stderr
        _, *steps = (workplace / "metrics/train_loss.csv").read_text(encoding="utf-8").splitlines()
        losses.append([float(step.split(",")[-1]) for step in steps])
        if processes == 1:
            edit_params(workplace, "processes: 1 ", "processes: 2 ")
    assert losses[0][-1] < 0.9 * losses[0][0] and losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_processes_that_torchrun_started_give_the_same_bytes(by_two: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(by_two, tmp_path / "folder"))
    shutil.rmtree(folder / "models/adapter")
    done = run_stage(folder, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stages.train")
    assert done.returncode == 0, done.stderr
    assert (folder / ADAPTER).read_bytes() == (by_two / ADAPTER).read_bytes()
    scores, expected = ((one / "metrics/validation_rougeL.csv").read_text(encoding="utf-8") for one in (folder, by_two))
    assert scores == expected and scores.count("\n") == 9


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize(
    ("number", "hits_first", "lines"),
    [(signal.SIGTERM, True, 1), (signal.SIGKILL, True, 0), (signal.SIGKILL, False, 1)],
)
def test_if_one_process_ends_all_end_and_the_first_prints_why(
    number: signal.Signals, hits_first: bool, lines: int, workplace: Path
) -> None:
    edit_params(workplace, "processes: 1 ", "processes: 2 ")
    edit_params(workplace, "      epochs: 1 ", "      epochs: 100 ")
    with start_stage(workplace, "stages.train") as first:
        wait_until(lambda: newest_checkpoint(workplace), first)
        processes = [psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True)]
        ports = [port for one in processes for port in one.net_connections() if port.status == psutil.CONN_LISTEN]
        processes[0 if hits_first else -1].send_signal(number)
        _, errors = first.communicate(timeout=60)
    assert first.returncode and errors.count("\n") == errors.count("error: ") == lines
    assert {port.laddr.ip for port in ports} == {"127.0.0.1"}  # no other host can reach them
    assert len(processes) >= 3 and psutil.wait_procs(processes[1:], timeout=30)[1] == []


def test_an_error_of_every_process_is_printed_once(workplace: Path) -> None:
    edit_params(workplace, "processes: 1 ", "processes: 2 ")
    edit_params(workplace, "learning_rate: 1.0e-2 ", "learning_rate: 1.0e+30 ")
    edit_params(workplace, "max_grad_norm: 1.0 ", "max_grad_norm: 1.0e+30 ")
    done = run_stage(workplace, "stages.train")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1 and "loss" in done.stderr
