"""A decode step on a GPU launches no more kernels, and moves no more bytes, than it has to.

One of 256 rows of TinyLlama's shape in bfloat16, at a reach of 512 places, moves 6.3 GB, which takes a H100
about 2.1 ms. The cache is 2.95 GB of it, the weights 2.07 GB (the embedding is not read), the inputs and outputs of
their products 0.43 GB, SiLU and its product 0.31 GB, rotary position embedding 0.18 GB, the sums of residuals 0.14 GB,
norms 0.10 GB. Of 590 kernels 220 are rotary position embedding's, 155 products and 66 attention's. The adapter adds 110
kernels and 0.35 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from types import MethodType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import howto.inference.kv_cache
from howto.inference.generator import use_unmerged
from howto.inference.kv_cache import NAME, Slots, _attention
from howto.modeling.fused_lora import _fused_norm
from howto.modeling.grouped_lora import GroupedLora
from tests.support.kernel_count import KernelCount, pretend_gpu, size_in_bytes

ROWS, REACH = 256, 512
GB = 1e9
BUDGET = {"base": (620, 6.8 * GB), "adapter": (735, 7.1 * GB)}  # kernels, bytes


@pytest.fixture(autouse=True)
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compute as stages do on a GPU: with deterministic kernels. A step is counted without its CUDA graph."""
    before = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    monkeypatch.setattr(howto.inference.kv_cache, "Graphs", lambda *_: None)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


def tinyllama(*, adapter: bool = False) -> PreTrainedModel:
    """TinyLlama's shape without weights, ready for `Slots`."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    if adapter:
        lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear")
        use_unmerged(get_peft_model(model, lora), torch.bfloat16, [0])
        with torch.device("meta"):
            GroupedLora(
                model.get_decoder(), {"input_ids": torch.ones(1, 4).long(), "attention_mask": torch.ones(1, 1, 4, 4)}
            )
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):  # as `use_fused_norms` does, which looks at numbers
            module.forward = MethodType(_fused_norm, module)
    AttentionInterface.register(NAME, _attention)
    model.set_attn_implementation(NAME)
    return model.eval().requires_grad_(False)


def counted_step(model: PreTrainedModel, kind: type[Slots] = Slots, reach: int = REACH) -> KernelCount:
    with torch.inference_mode(), pretend_gpu():
        slots = kind(model, ROWS, REACH)
        tokens, places = (torch.zeros(ROWS, dtype=torch.int64, device="cuda") for _ in range(2))
        slots.pass_through(tokens, places, reach)  # makes the cache
        count = KernelCount()
        with count:
            logits = slots.pass_through(tokens, places, reach)
    assert logits.shape == (ROWS, 32000)
    return count


@pytest.mark.parametrize("name", ["base", "adapter"])
def test_a_decode_step_stays_within_its_budget(name: str) -> None:
    kernels, size = BUDGET[name]
    for reach in (REACH, REACH - 1):  # the last one's rows of the mask do not start at multiples of 16 bytes
        count = counted_step(tinyllama(adapter=name == "adapter"), reach=reach)
        assert kernels / 2 < count.kernels <= kernels, count.table()
        assert size / 2 < count.bytes <= size, count.table()


class RepeatedKeys(Slots):
    """Attends as one would write it first, which under torch's rules repeats all keys and values in float32."""

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, more: Any) -> Any:
        self._keep(layer, key, value)
        assert self._cache is not None
        keys, values = self._cache[layer, :, : len(query), :, : self._longest]
        visible = torch.arange(self._longest, device=query.device) <= self._places[:, None]
        attended = scaled_dot_product_attention(
            query, keys, values, attn_mask=visible[:, None, None], scale=more["scaling"], enable_gqa=True
        )
        return attended.transpose(1, 2)


def test_attention_that_repeats_keys_in_float32_is_far_beyond_the_budget() -> None:
    assert counted_step(tinyllama(), RepeatedKeys).bytes > 20 * BUDGET["base"][1]


def test_cache_writes_that_are_sorted_are_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(howto.inference.kv_cache, "_in_any_order", nullcontext)
    assert counted_step(tinyllama()).kernels > 1.5 * BUDGET["base"][0]


def test_each_operation_counts_what_it_reads_and_writes() -> None:
    with torch.device("meta"):
        square, row, places = torch.empty(64, 64), torch.empty(64), torch.empty(8, dtype=torch.int64)
    whole, line = size_in_bytes(square), size_in_bytes(row)
    assert (whole, line) == (64 * 64 * 4, 64 * 4)
    assert size_in_bytes(row.expand(64, 64)) == line
    for work, wanted in (
        (lambda: square.view(8, 8, 64).transpose(0, 1)[2:], (0, 0)),
        (lambda: torch.empty_like(square), (0, 0)),
        (lambda: square @ square, (1, 3 * whole)),
        (lambda: square + row.expand(64, 64), (1, 2 * whole + line)),
        (lambda: square.add_(square), (1, 3 * whole)),
        (square.zero_, (1, whole)),
        (lambda: square.copy_(row), (1, whole + line)),
        (lambda: square[places], (1, 8 * 8 + 2 * 8 * line)),
        (lambda: torch.nn.functional.linear(square, square, row), (1, 3 * whole + line)),
    ):
        with KernelCount() as count, torch.inference_mode():
            work()  # type: ignore[no-untyped-call]
        assert (count.kernels, count.bytes) == wanted, count.table()


@pytest.mark.parametrize(("deterministic", "kernels"), [(False, 1), (True, 23)])
def test_a_write_through_an_index_counts_what_is_written(*, deterministic: bool, kernels: int) -> None:
    torch.use_deterministic_algorithms(deterministic)
    with torch.device("meta"):
        square, values, places = torch.empty(64, 64), torch.empty(8, 64), torch.empty(8, dtype=torch.int64)
    with KernelCount() as count:
        square[places] = values
    assert (count.kernels, count.bytes) == (kernels, 8 * 8 + 2 * size_in_bytes(values)), count.table()
