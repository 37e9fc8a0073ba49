"""A base that is sharded over processes trains the same adapter, and no process holds all of it."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import stages.train
from tests.conftest import ROOT, run_stage
from tests.support.in_process import edit_params, run_here


def test_the_adapter_has_the_bytes_of_one_trained_on_an_unsharded_base(by_two: Path, tmp_path: Path) -> None:
    # Two rows at a time: in the last step of an epoch one process has a batch more than the other.
    last = json.loads((by_two / "metrics/train.json").read_text(encoding="utf-8"))["rows"]["used"] % 8
    assert math.ceil(math.ceil(last / 2) / 2) > math.ceil(last // 2 / 2)
    folder = Path(shutil.copytree(by_two, tmp_path / "folder"))
    shutil.rmtree(folder / "models/adapter")
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(text.replace("fsdp: false ", "fsdp: true ", 1), encoding="utf-8")
    done = run_stage(folder, "stages.train")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    for name in ("models/adapter/adapter_model.safetensors", "metrics/train_loss.csv", "metrics/validation_rougeL.csv"):
        assert (folder / name).read_bytes() == (by_two / name).read_bytes()


def test_an_adapter_whose_init_changes_the_base_is_refused(small_params: str, tmp_path: Path) -> None:
    text = small_params.replace("fsdp: false ", "fsdp: true ", 1).replace("processes: 1 ", "processes: 2 ", 1)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    edit_params(tmp_path, "init: default ", "init: pissa ")
    done = run_here(stages.train.main, tmp_path)
    assert done.returncode == 1 and "fsdp does not support train.lora.init: pissa" in done.stderr


PROGRAM = """
import gc, json, sys, torch
from pathlib import Path
from howto.modeling.distributed.launch import in_process_group, launch

def tensor_bytes():
    "Bytes of all tensors that Python knows of, each storage once."
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())

def measure(group):
    from howto.modeling.collate import Example
    from howto.training.forward import Engine
    from howto.training.fsdp import gathered_bytes, shard_base
    from tests.support.models import SHARED, adapted, llama, train_profile
    before = tensor_bytes()
    model = adapted(llama(64))
    names = {name: weight.numel() * weight.itemsize for name, weight in model.named_parameters()}
    base = sum(size for name, size in names.items() if "lora_" not in name and "lm_head" not in name)
    if group:
        shard_base(model, group)
    held = tensor_bytes() - before
    row, saved = Example("0", [5, 6, 7], [8, 9, 2]), {}
    engine = Engine(model, [row], SHARED, train_profile(), 2)
    def record(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        loss = engine.loss(next(engine.batches([row])), seed=1)
    between = sum(storage.nbytes() for storage in saved.values())
    torch.autograd.backward(loss)
    return {"base": base, "held": held, "between": between, "gathered": gathered_bytes(model)}

if in_process_group():
    from howto.modeling.distributed.process_group import join_process_group
    with join_process_group(2, torch.device("cpu"), "2") as group:
        found = [measure(None), measure(group)]
        if group.rank:
            Path(sys.argv[1]).write_text(json.dumps(found))
else:
    launch("program", sys.argv[1:], 2)
"""


def test_a_process_holds_its_shard_alone_also_between_forward_and_backward_pass(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-m", "program", str(tmp_path / "found.json")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    whole, sharded = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    slack = 500  # bytes, for single numbers
    assert sharded["held"] == pytest.approx(whole["held"] - whole["base"] / 2, abs=slack)
    # Saved for the backward pass are activations and weights; gathered weights are freed by then.
    assert sharded["gathered"] > 100 * slack
    assert whole["between"] - sharded["between"] == pytest.approx(sharded["gathered"], abs=slack)
