"""A base that is shared out among processes trains the same adapter, and no process holds it as a whole."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_stage
from tests.support.in_process import edit_params

ADAPTER = "models/adapter/adapter_model.safetensors"


def test_the_adapter_has_the_bytes_of_one_that_was_trained_on_a_whole_base(by_two: Path, tmp_path: Path) -> None:
    # Two rows at a time: in the last step of an epoch one process has a batch more than the other one.
    used = json.loads((by_two / "metrics/train.json").read_text(encoding="utf-8"))["rows"]["used"]
    last = used % 8
    more, less = math.ceil(last / 2), last // 2
    assert math.ceil(more / 2) > math.ceil(less / 2), "one of the processes was to have a batch more"
    folder = Path(shutil.copytree(by_two, tmp_path / "folder"))
    shutil.rmtree(folder / "models/adapter")
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(text.replace("fsdp: false ", "fsdp: true ", 1), encoding="utf-8")
    done = run_stage(folder, "stages.train")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert (folder / ADAPTER).read_bytes() == (by_two / ADAPTER).read_bytes()
    assert (folder / "metrics/train_loss.csv").read_bytes() == (by_two / "metrics/train_loss.csv").read_bytes()


def test_an_adapter_whose_init_changes_the_base_is_refused_in_one_line(by_two: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(by_two, tmp_path / "folder"))
    text = (folder / "params.yaml").read_text(encoding="utf-8")
    (folder / "params.yaml").write_text(text.replace("fsdp: false ", "fsdp: true ", 1), encoding="utf-8")
    edit_params(folder, "init: default ", "init: pissa ")
    done = run_stage(folder, "stages.train")
    assert done.returncode == 1
    assert done.stderr == "error: params.yaml: profiles.*.train.fsdp does not go with train.lora.init: pissa\n"


HOLDING = """
import gc, json, sys, torch
from pathlib import Path
from howto.modeling.distributed.launch import in_process_group, launch
from howto.core.errors import reports_errors

def held():
    "Bytes of all tensors that Python knows of, each storage once."
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())

@reports_errors
def main():
    if not in_process_group():
        launch("holding", sys.argv[1:], 2)
        return
    from howto.training.lora import add_adapter
    from howto.modeling.collate import Example
    from howto.training.forward import Engine
    from howto.modeling.distributed.process_group import join_process_group
    from howto.params import read_params
    from howto.training.config import ProfileTrain, Train
    from howto.training.fsdp import gathered_bytes, shard_base
    from tests.support.models import llama
    params = read_params()
    shared, profile = params.section(Train), params.section(ProfileTrain)
    row = Example("0", [5, 6, 7], [8, 9, 2])
    with join_process_group(2, torch.device("cpu"), "2") as group:
        found = {}
        for name in ("whole", "parts"):
            before = held()
            model = add_adapter(llama(64), shared.lora, Path("base"))
            if name == "whole":
                sizes = {name: weight.numel() * weight.itemsize for name, weight in model.named_parameters()}
                adapter = sum(size for name, size in sizes.items() if "lora_" in name)
                found["shared_out"] = sum(sizes.values()) - adapter - sizes["base_model.model.lm_head.weight"]
            else:
                shard_base(model, group)
                found["gathered"] = gathered_bytes(model)
            of_model = held()
            engine = Engine(model, [row], shared, profile, 2)
            (batch,) = engine.batches([row])
            saved = {}
            def pack(tensor):
                saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
                return tensor
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = engine.loss(batch, seed=1)
            between = sum(storage.nbytes() for storage in saved.values())
            torch.autograd.backward(loss)
            found[name] = {"model": of_model - before, "between": between, "after": held() - of_model}
            del model, engine, loss, batch, saved, pack
        if group.rank:
            Path(sys.argv[1]).write_text(json.dumps(found))
main()
"""


def test_a_process_holds_its_part_of_the_base_also_between_the_way_forth_and_the_way_back(
    by_two: Path, tmp_path: Path
) -> None:
    (tmp_path / "holding.py").write_text(HOLDING, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-m", "holding", str(tmp_path / "found.json")]
    done = subprocess.run(
        command, cwd=by_two, env=environment, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    whole, parts = found["whole"], found["parts"]
    slack = 500  # bytes, for single numbers
    assert parts["model"] == pytest.approx(whole["model"] - found["shared_out"] / 2, abs=slack)
    assert parts["after"] == pytest.approx(whole["after"], abs=slack)
    # What is saved for the way back are activations and whole weights, or activations and weights that are empty now.
    assert found["gathered"] > 100 * slack
    assert whole["between"] - parts["between"] == pytest.approx(found["gathered"], abs=slack)
