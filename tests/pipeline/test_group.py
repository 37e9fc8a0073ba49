"""Processes that share a step's rows train the adapter that one process trains, and end together."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from howto.core.errors import UserError
from howto.modeling.distributed.launch import PEER_FAILED
from howto.modeling.distributed.process_group import ProcessGroup, join_process_group
from tests.conftest import ROOT, run_stage, wait_for_checkpoint

ADAPTER = "models/adapter/adapter_model.safetensors"


def edit(folder: Path, **values: object) -> None:
    """Set keys of the default profile, or of `train`, by the words before their value."""
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
    train = workplace / "data/prepared/train.jsonl"
    lines = train.read_text(encoding="utf-8").splitlines(keepends=True)[:91]
    assert len(lines) % rows, "the last step of an epoch was to be short"
    train.write_text("".join(lines), encoding="utf-8")
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


GRADIENTS = """
import sys, torch
from safetensors.torch import save_file
from howto.modeling.distributed.launch import in_process_group, launch
from howto.params import read_params
from howto.training.config import ProfileTrain, Train
from howto.core.errors import reports_errors
import stages.train as stage

@reports_errors
def main():
    if sys.argv[1] == "2" and not in_process_group():
        launch("gradients", sys.argv[1:], 2)
        return
    from howto.training.lora import add_adapter, trained_weights
    from howto.modeling.loading import load_base, load_tokenizer
    from howto.training.forward import Engine
    from howto.modeling.distributed.process_group import join_process_group
    from howto.training.trainer import Trainer
    params, cpu = read_params(), torch.device("cpu")
    torch.set_num_threads(1)
    shared, profile = params.section(Train), params.section(ProfileTrain)
    tokenizer = load_tokenizer(stage.BASE)
    train_set, _ = stage.read_examples(tokenizer, shared)
    # As good as no learning, so that each step's gradient is taken at the same weights.
    profile = profile.model_copy(update={"epochs": None, "steps": 14, "learning_rate": 1e-30})
    with join_process_group(int(sys.argv[1]), cpu, "2") as group:
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
            trainer.run()
            if group.rank == 0:
                save_file(found, f"gradients-{sys.argv[1]}-{packing}.safetensors")
main()
"""


def test_the_gradients_of_two_processes_are_those_of_one_in_each_step(workplace: Path) -> None:
    edit(workplace, dropout=0.0)
    (workplace / "gradients.py").write_text(GRADIENTS, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{workplace}"}
    for processes in ("1", "2"):
        command = [sys.executable, "-m", "gradients", processes]
        subprocess.run(command, cwd=workplace, env=environment, check=True, timeout=200)
    for packing in (True, False):
        alone, together = (load_file(workplace / f"gradients-{n}-{packing}.safetensors") for n in (1, 2))
        assert alone.keys() == together.keys() and len({name.split()[0] for name in alone}) == 14
        for name, gradient in alone.items():
            assert gradient.norm() > 0
            assert (together[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_processes_that_torchrun_started_give_the_same_bytes(by_two: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(by_two, tmp_path / "folder"))
    shutil.rmtree(folder / "models/adapter")
    done = run_stage(folder, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "stages.train")
    assert done.returncode == 0, done.stderr
    assert (folder / ADAPTER).read_bytes() == (by_two / ADAPTER).read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGINT, "error: stopped by the keyboard; nothing half-written was kept\n"),
        (signal.SIGTERM, "error: stopped by SIGTERM; nothing half-written was kept\n"),
        (signal.SIGKILL, ""),
    ],
)
def test_no_process_goes_on_when_the_first_is_stopped_and_one_line_is_said(
    workplace: Path, number: signal.Signals, said: str
) -> None:
    edit(workplace, processes=2, epochs=100)
    command = [sys.executable, "-m", "stages.train"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=workplace, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as first:
        wait_for_checkpoint(workplace, first)
        others = psutil.Process(first.pid).children(recursive=True)
        listening = {
            one.laddr.ip
            for process in (psutil.Process(first.pid), *others)
            for one in process.net_connections()
            if one.status == psutil.CONN_LISTEN
        }
        first.send_signal(number)
        _, errors = first.communicate(timeout=60)
    assert errors == said
    assert len(others) >= 2 and listening == {"127.0.0.1"}  # no other host can reach them
    _, alive = psutil.wait_procs(others, timeout=30)
    assert alive == []
    if number != signal.SIGKILL:
        return
    # Another number of processes sums otherwise: what is there is neither taken up nor passed over.
    edit(workplace, processes=1)
    done = run_stage(workplace, "stages.train")
    (folder,) = (workplace / "models/checkpoints").iterdir()
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{folder.relative_to(workplace)}: expected checkpoints of processes: 1, got 2" in done.stderr


FAILING = """
import sys, torch
from howto.modeling.distributed.process_group import join_process_group
from howto.modeling.distributed.launch import in_process_group, launch
from howto.core.errors import reports_errors
@reports_errors
def main():
    if not in_process_group():
        launch("failing", [], 2)
        return
    with join_process_group(2, torch.device("cpu"), "2") as group:
        if group.rank == 1:
            sys.exit(3)
        group.all_reduce([torch.ones(1)] * 1000)
        group.all_reduce([torch.ones(1)] * 1000)
main()
"""


def test_the_first_does_not_wait_for_one_that_has_failed(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-m", "failing"], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1 and done.stderr == f"error: {PEER_FAILED}\n"


def test_what_stops_every_process_is_said_once(workplace: Path) -> None:
    edit(workplace, processes=2, max_grad_norm="1.0e+30", schedule="constant", learning_rate="1.0e+30")
    done = run_stage(workplace, "stages.train")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1 and "expected a finite loss in step" in done.stderr


def test_a_group_of_another_size_than_params_say_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    started = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    said = pytest.raises(UserError, match=r"train\.processes: expected 3, .* got 2")
    with said, join_process_group(2, torch.device("cpu"), "train.processes"):
        pass


def test_an_address_that_other_hosts_cannot_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    started = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.1.1", "MASTER_PORT": "1"}
    for name, value in {**started, "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    names = {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
    before = names & os.environ.keys()
    said = pytest.raises(UserError, match=r"expected an address that other hosts can reach, got 127\.0\.1\.1")
    with said, join_process_group(2, torch.device("cpu"), "train.processes"):
        pass
    assert names & os.environ.keys() == before  # else what is started next would keep to the loopback interface


def test_on_gpus_each_process_has_the_one_of_its_number_on_its_host() -> None:
    group = ProcessGroup(torch.device("cuda"), 5, 8, 1, 4)
    assert str(group.device) == "cuda:1"
    assert str(ProcessGroup(torch.device("cpu")).device) == "cpu"
