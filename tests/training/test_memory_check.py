"""Too little memory is reported before it runs out, with a setting that fits."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import howto.training.cgroup
import howto.training.memory_check
import stages.infer
from howto.core.errors import UserError
from howto.modeling.collate import Example
from howto.training.forward import Engine
from howto.training.memory_check import available_bytes, check_memory
from tests.conftest import ROOT
from tests.support.in_process import edit_params, run_here
from tests.support.models import SHARED, adapted, train_profile

CPU = torch.device("cpu")
EXAMPLES = [Example(str(n), list(range(3, 103)), list(range(3, 103 + n))) for n in range(20)]


def make_engine(**profile: Any) -> Engine:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 8, "num_attention_heads": 4}
    model = adapted(LlamaForCausalLM(LlamaConfig(vocab_size=512, **sizes)))
    return Engine(model, EXAMPLES, SHARED, train_profile(**profile), pad=2)


@cache
def needed(size: int = 8, *, checkpointing: bool = False, processes: int = 1) -> int:
    profile = {"micro_batch_size": size, "gradient_checkpointing": checkpointing, "processes": processes}
    return check_memory(make_engine(**profile), EXAMPLES, train_profile(**profile))


def test_a_process_needs_memory_only_for_its_share_of_a_step() -> None:
    assert needed(8, processes=4) == needed(2)


@pytest.mark.parametrize(("checkpointing", "passes"), [(False, 1), (True, 2)])
def test_the_check_leaves_checkpointing_as_params_have_it(checkpointing: bool, passes: int) -> None:
    engine = make_engine(gradient_checkpointing=checkpointing)
    check_memory(engine, EXAMPLES, train_profile(gradient_checkpointing=checkpointing))
    calls = []
    engine.base.get_decoder().layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    torch.autograd.backward(engine.loss(next(engine.batches(EXAMPLES[:2])), seed=0))
    assert len(calls) == passes


PROGRAM = """
import tests.training.test_memory_check as t
import psutil, torch
torch.set_num_threads(2)
# No two prompts begin alike: tokens of a shared prefix are held once, and predicted for each row.
t.EXAMPLES[:] = [t.Example(str(n), [3 + n, *range(4, 303)], list(range(3, 303))) for n in range(8)]
engine = t.make_engine()
t.howto.training.memory_check.LOGIT_COPIES = 0  # so few logits fill no chunk
predicted = t.check_memory(engine, t.EXAMPLES, t.train_profile())
before = psutil.Process().memory_info().rss
(batch,) = engine.batches(t.EXAMPLES)
loss = engine.loss(batch, seed=0)
print(predicted, psutil.Process().memory_info().rss - before)
"""


def test_the_prediction_is_above_what_is_held_and_below_its_double() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, cwd=ROOT)
    predicted, held = map(int, done.stdout.split()[-2:])
    assert held < predicted < 2 * held, f"{predicted / 2**20:.0f} MiB predicted, {held / 2**20:.0f} MiB held"


def test_too_little_memory_is_a_line_with_a_setting_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    for_eight, for_two = needed(8, checkpointing=True), needed(2, checkpointing=True)
    for profile, available, message in (
        ({}, for_eight, "Set micro_batch_size: 8 and gradient_checkpointing: true under profiles"),
        ({"gradient_checkpointing": True}, for_two, "Set micro_batch_size: 2 under profiles"),
        ({}, 1000, "Not even one row fits"),
    ):
        monkeypatch.setattr(howto.training.memory_check, "available_bytes", lambda _, available=available: available)
        with pytest.raises(UserError, match=rf"GiB of free memory on cpu, got .* GiB\. {message}"):
            check_memory(make_engine(**profile), EXAMPLES, train_profile(**profile))


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(howto.training.cgroup, "CGROUP", tmp_path)
    (tmp_path / "memory").mkdir()
    assert available_bytes(CPU) == pytest.approx(psutil.virtual_memory().available, rel=0.3)
    for files, free in (
        ({"memory.max": "9000000", "memory.current": "5000000"}, 4_000_000),
        ({"memory.stat": "anon 3000000\ninactive_file 1500000"}, 5_500_000),  # cached files, not read for a while
        (
            {"memory.max": "max", "memory/memory.limit_in_bytes": "7000000", "memory/memory.usage_in_bytes": "6000000"},
            10**6,
        ),
        ({"memory/memory.stat": "cache 1\ntotal_inactive_file 1000000"}, 2_000_000),
    ):
        for name, text in files.items():
            (tmp_path / name).write_text(f"{text}\n", encoding="ascii")
        assert available_bytes(CPU) == free


@pytest.mark.parametrize(("size", "message"), [(128, "batch_size: 6 under"), (1, "lower infer.max_new_tokens or")])
def test_answers_that_need_more_memory_than_there_is_are_one_line(workplace: Path, size: int, message: str) -> None:
    path = workplace / "models/base/config.json"
    path.write_text(path.read_text(encoding="utf-8").replace(": 1024", f": {2**50}"), encoding="utf-8")
    edit_params(workplace, "max_new_tokens: 48 ", f"max_new_tokens: {2**45} ")  # a cache that no machine can hold
    edit_params(workplace, "batch_size: 128 ", f"batch_size: {size} ")
    done = run_here(stages.infer.main, workplace, "--stage", "adapter")
    assert done.returncode == 1 and "infer: out of memory" in done.stderr and message in done.stderr
