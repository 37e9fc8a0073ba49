"""Processes that share a step's rows compute what one process computes, and end together."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT, call, run_stage
from tests.support.in_process import edit_params
from tests.support.processes import newest_checkpoint, start_stage, wait_until

ADAPTER = "models/adapter/adapter_model.safetensors"

GRADIENTS = """
import sys, torch
from safetensors.torch import save_file
from howto.modeling.distributed.process_group import join_process_group
from howto.modeling.loading import load_base, load_tokenizer
from howto.params import read_params
from howto.training.config import ProfileTrain, Train
from howto.training.forward import Engine
from howto.training.lora import add_adapter, trained_weights
from howto.training.trainer import Trainer
import stages.train as stage

params, cpu, processes = read_params(), torch.device("cpu"), int(sys.argv[1])
torch.set_num_threads(1)
shared, profile = params.section(Train), params.section(ProfileTrain)
train_set, _ = stage.read_examples(load_tokenizer(stage.BASE), shared)
# The learning rate leaves the weights as they are, so that every step's gradient is that of the same weights.
profile = profile.model_copy(update={"epochs": None, "steps": 14, "learning_rate": 1e-30})
with join_process_group(processes, cpu, "processes") as group:
    for packing in (True, False):
        torch.manual_seed(0)
        model = add_adapter(load_base(stage.BASE, "float32", cpu), shared.lora, stage.BASE)
        weights = trained_weights(model)
        with torch.no_grad():
            for name, weight in weights.items():
                if "lora_B" in name:
                    weight.normal_(std=0.05)
        engine = Engine(model, train_set.examples, shared.model_copy(update={"packing": packing}), profile, 2)
        trainer = Trainer(engine, train_set.examples, [], shared, profile, group=group)
        found = {}
        def keep(*_):
            step = len(found) // len(weights)
            found.update({f"{step} {name}": weight.grad.clone() for name, weight in weights.items()})
        trainer._optimizer.register_step_pre_hook(keep)
        losses = [step[-1] for step in trainer.run().train]
        if group.rank == 0:
            save_file({**found, "losses": torch.tensor(losses)}, f"{processes}-{packing}.safetensors")
"""


def test_in_each_step_two_processes_have_the_loss_and_gradients_of_one(workplace: Path) -> None:
    edit_params(workplace, "dropout: 0.05 ", "dropout: 0.0 ")
    (workplace / "gradients.py").write_text(GRADIENTS, encoding="utf-8")
    for launcher in ([], ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]):
        command = [sys.executable, "-m", *launcher, "gradients", str(2 if launcher else 1)]
        done = call(workplace, *command, PYTHONPATH=f"{ROOT}{os.pathsep}{workplace}")
        assert done.returncode == 0, done.stderr
    for packing in (True, False):
        one, two = (load_file(workplace / f"{number}-{packing}.safetensors") for number in (1, 2))
        assert one.keys() == two.keys() and len({name.split()[0] for name in one}) == 14 + 1
        for name, gradient in one.items():
            assert gradient.norm() > 0
            assert (two[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_processes_that_torchrun_started_give_the_same_bytes(by_two: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(by_two, tmp_path / "folder"))
    shutil.rmtree(folder / "models/adapter")
    done = run_stage(folder, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stages.train")
    assert done.returncode == 0, done.stderr
    assert (folder / ADAPTER).read_bytes() == (by_two / ADAPTER).read_bytes()


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
