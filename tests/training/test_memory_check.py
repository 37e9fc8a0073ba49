"""Too little memory is said before it runs out, with what would fit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import howto.training.cgroup
import howto.training.memory_check
from howto.core.errors import UserError
from howto.modeling.collate import Example
from howto.params import read_params
from howto.training.config import ProfileTrain, Train
from howto.training.forward import Engine
from howto.training.lora import add_adapter
from howto.training.memory_check import available_bytes, check_memory, says_out_of_memory
from tests.conftest import ROOT, run_stage
from tests.support.in_process import edit_params

CPU = torch.device("cpu")
PARAMS = read_params(ROOT / "params.yaml")
SHARED = PARAMS.section(Train)
EXAMPLES = [Example(str(n), list(range(3, 103)), list(range(3, 103 + n))) for n in range(20)]


def profile(size: int = 8, *, again: bool = False) -> ProfileTrain:
    return ProfileTrain(
        epochs=1,
        learning_rate=1e-3,
        batch_size=8,
        micro_batch_size=size,
        gradient_checkpointing=again,
        processes=1,
        fsdp=False,
    )


def engine(profile: ProfileTrain) -> Engine:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=344, num_hidden_layers=8, num_attention_heads=4
    )
    model = add_adapter(LlamaForCausalLM(config), SHARED.lora, Path("base"))
    return Engine(model, EXAMPLES, SHARED, profile, pad=2)


def needed(size: int = 8, *, again: bool = False) -> int:
    chosen = profile(size, again=again)
    return check_memory(engine(chosen), EXAMPLES, chosen, packing=True)


def test_more_rows_at_once_need_more_and_layers_computed_again_less() -> None:
    assert needed(1) < needed(4) < needed(8)
    assert needed(8, again=True) < needed(8)


@pytest.mark.parametrize(("again", "times"), [(False, 1), (True, 2)])
def test_telling_the_memory_leaves_the_layers_as_params_want_them(again: bool, times: int) -> None:
    chosen = profile(8, again=again)
    made = engine(chosen)
    check_memory(made, EXAMPLES, chosen, packing=True)
    calls = []
    made.base.get_decoder().layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    torch.autograd.backward(made.loss(next(made.batches(EXAMPLES[:2])), seed=0))
    assert len(calls) == times  # once on the way forth, and once more on the way back


MEASURED = """
import sys, resource
sys.path.insert(0, {root!r})
import tests.training.test_memory_check as t
import psutil, torch, threading
torch.set_num_threads(2)
profile = t.profile(8)
# No two prompts begin alike: what rows share is held once, and told for each.
t.EXAMPLES[:] = [t.Example(str(n), [3 + n, *range(4, 503)], list(range(3, 503))) for n in range(8)]
engine = t.engine(profile)
t.howto.training.memory_check.OF_CHUNK = 0  # so few logits fill no chunk
told = t.check_memory(engine, t.EXAMPLES, profile, packing=True)
before = psutil.Process().memory_info().rss
(batch,) = engine.batches(t.EXAMPLES)
loss = engine.loss(batch, seed=0)
held = psutil.Process().memory_info().rss - before
loss.backward()
print(told, held)
"""


def test_what_is_told_is_what_is_held() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.format(root=str(ROOT))], capture_output=True, text=True, check=True
    )
    told, held = map(int, done.stdout.split()[-2:])
    assert held < told < 2 * held, f"{told / 2**20:.0f} MiB told, {held / 2**20:.0f} MiB held"


def test_too_little_memory_is_a_line_that_says_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    enough_again, for_two_again = needed(8, again=True), (needed(2, again=True) + needed(4, again=True)) // 2
    assert for_two_again < enough_again < needed(8)
    for chosen, have, said in (
        (profile(8), enough_again, "set micro_batch_size: 8 and gradient_checkpointing: true under profiles"),
        (profile(8, again=True), for_two_again, "set micro_batch_size: 2 under profiles"),
        (profile(8), 1000, "not even one row at a time fits"),
    ):
        monkeypatch.setattr(howto.training.memory_check, "available_bytes", lambda device, have=have: have)
        with pytest.raises(UserError) as stop:
            check_memory(engine(chosen), EXAMPLES, chosen, packing=True)
        message = str(stop.value)
        assert re.search(r"about .* GiB of memory are needed and .* GiB are free on cpu; ", message)
        assert said in message and "\n" not in message


def test_a_process_is_dealt_its_share_of_a_step_and_needs_no_more() -> None:
    of_four = profile(8).model_copy(update={"processes": 4})
    assert check_memory(engine(of_four), EXAMPLES, of_four, packing=True) == needed(2)
    with pytest.raises(UserError, match="set micro_batch_size: 1 under"), says_out_of_memory(of_four):
        torch.empty(2**50, dtype=torch.uint8)


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(howto.training.cgroup, "CGROUP", tmp_path)
    free = psutil.virtual_memory().available
    assert available_bytes(CPU) == pytest.approx(free, rel=0.3)
    (tmp_path / "memory.max").write_text("max\n", encoding="ascii")
    (tmp_path / "memory.current").write_text("5000000\n", encoding="ascii")
    assert available_bytes(CPU) == pytest.approx(free, rel=0.3)
    (tmp_path / "memory.max").write_text("9000000\n", encoding="ascii")
    assert available_bytes(CPU) == 4_000_000
    # files that nobody has read for a while are given back
    (tmp_path / "memory.stat").write_text("anon 3000000\ninactive_file 1500000\n", encoding="ascii")
    assert available_bytes(CPU) == 5_500_000
    (tmp_path / "memory").mkdir()
    for name, text in {
        "limit_in_bytes": "7000000",
        "usage_in_bytes": "6000000",
        "stat": "cache 1\ntotal_inactive_file 1000000",
    }.items():
        (tmp_path / f"memory/memory.{name}").write_text(f"{text}\n", encoding="ascii")
    assert available_bytes(CPU) == 2_000_000


def test_memory_that_runs_out_all_the_same_is_the_same_line() -> None:
    for chosen, said in (
        (profile(8), "set micro_batch_size: 4 under"),
        (profile(1), "set gradient_checkpointing: true under"),
        (profile(1, again=True), "lower train.max_length"),
    ):
        with pytest.raises(UserError, match=said), says_out_of_memory(chosen):
            torch.empty(2**50, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), says_out_of_memory(profile(8)):
        torch.empty(2, 3) @ torch.empty(2, 3)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (128, "with 12 rows in flight; set batch_size: 6 under profiles.*.infer in params.yaml, or free memory"),
        (1, "with 1 row in flight; lower infer.max_new_tokens or infer.max_prompt_tokens in params.yaml, "),
    ],
)
def test_answers_that_need_more_memory_than_there_is_are_one_line(workplace: Path, size: int, said: str) -> None:
    path = workplace / "models/base/config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "max_position_embeddings": 2**50}), encoding="utf-8")
    edit_params(workplace, "max_new_tokens: 48 ", f"max_new_tokens: {2**45} ")  # a cache that no machine can hold
    edit_params(workplace, "batch_size: 128 ", f"batch_size: {size} ")
    done = run_stage(workplace, "stages.infer", "--stage", "adapter")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: infer: out of memory") and said in line
