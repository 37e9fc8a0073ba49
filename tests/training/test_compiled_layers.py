"""Compiled layers compute what the others do, and their dropout is as random as it must be.

They are traced as they are on a GPU, with FlashAttention's operator in the midst of a layer, and compiled for a CPU,
where the compiler fuses what it fuses for a GPU. All layers share their code, of which the first one needs some of its
own. A layer's forward and backward pass are 24 products, 15 fused kernels and 2 of attention.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor import config as inductor
from torch._inductor.graph import GraphLowering
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from howto.modeling.collate import Example
from howto.modeling.fused_lora import kept
from howto.params import read_params
from howto.training.compiled_layers import draw_keys
from howto.training.config import ProfileTrain, Train
from howto.training.forward import Engine
from howto.training.lora import add_adapter, trained_weights
from howto.training.trainer import Trainer
from tests.support.flash_on_cpu import as_on_a_gpu

PARAMS = Path(__file__).parents[2] / "params.yaml"
PROFILE = ProfileTrain(
    steps=1,
    learning_rate=1e-3,
    batch_size=3,
    micro_batch_size=3,
    gradient_checkpointing=False,
    processes=1,
    fsdp=False,
)


# Of a layer: kernels, and numbers that are read or written, for each token and hidden unit, as the compiler counts.
KERNELS, NUMBERS = 43, 185
SIZE = 128  # of hidden states; other sizes are in TinyLlama's proportions


def llama() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=SIZE,
        intermediate_size=SIZE * 11 // 4,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=1,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def engine(*, compiled: bool, rate: float) -> Engine:
    shared = read_params(PARAMS).section(Train)
    shared = shared.model_copy(update={"lora": shared.lora.model_copy(update={"dropout": rate})})
    model = add_adapter(llama(), shared.lora, Path("base"))
    for number, (name, weight) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(number))
    made = Engine(model, rows(6), shared, PROFILE, 0, compiled=compiled)
    assert made.is_compiled == compiled
    return made


def rows(count: int) -> list[Example]:
    return [
        Example(str(n), [(7 * n + p) % 50 for p in range(3 + n)], [(3 * n + p) % 50 for p in range(2 + 2 * n)])
        for n in range(count)
    ]


def gradients(engine: Engine, seed: int | None) -> dict[str, torch.Tensor]:
    engine.model.zero_grad()
    for batch in engine.batches([*rows(30)[:3], *rows(30)[-3:]]):  # of two lengths
        torch.autograd.backward(engine.loss(batch, seed=seed))
    return {name: w.grad.clone() for name, w in engine.model.named_parameters() if w.grad is not None}


@pytest.fixture(scope="module", autouse=True)
def gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        as_on_a_gpu(patch)
        yield


@pytest.fixture(scope="module")
def graphs() -> Iterator[list[tuple[int, float]]]:
    """Of each graph that is compiled: its kernels, and the bytes that they move."""
    found: list[tuple[int, float]] = []
    codegen = GraphLowering.codegen

    def counted(self: GraphLowering) -> Any:
        code = codegen(self)
        kernel = r"^\s+(?:(?:\w+ = )?torch\.ops\.torch_attn\.|extern_kernels\.|cpp_fused)\w*(?:\.\w+)?\("
        found.append((len(re.findall(kernel, code[0].value, re.MULTILINE)), self.count_bytes()[0]))
        return code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphLowering, "codegen", counted)
        yield found


@pytest.fixture(scope="module")
def compiled(graphs: list[tuple[int, float]]) -> Engine:
    torch._dynamo.reset()
    graphs.clear()
    with inductor.patch(force_disable_caches=True):
        return engine(compiled=True, rate=0.5)


def test_without_dropout_gradients_are_those_of_other_layers(compiled: Engine) -> None:
    assert compiled._layers is not None
    with compiled._layers.eager():
        found = gradients(compiled, None)
    wanted = gradients(engine(compiled=False, rate=0.5), None)
    assert len(found) == len(wanted) == 42
    for name, gradient in wanted.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm()


def test_with_dropout_the_gradients_are_those_of_the_same_masks_and_the_same_bytes_twice(compiled: Engine) -> None:
    once, twice, other = (gradients(compiled, seed) for seed in (1, 1, 2))
    for name, gradient in once.items():
        assert torch.equal(gradient, twice[name])
        assert not torch.equal(gradient, other[name])
    assert compiled._layers is not None
    with compiled._layers.eager():
        eager = gradients(compiled, 1)
    for name, gradient in once.items():
        assert (gradient - eager[name]).norm() <= 1e-5 * gradient.norm()


def test_query_key_and_value_share_a_mask_and_other_inputs_have_their_own(compiled: Engine) -> None:
    groups = [
        {name.split(".")[-1]: module.group for name, module in layer.named_modules() if hasattr(module, "group")}
        for layer in compiled.base.get_decoder().layers
    ]
    for of in groups:
        assert of["q_proj"] is of["k_proj"] is of["v_proj"]
        assert of["gate_proj"] is of["up_proj"]
        assert len(set(of.values())) == 4
    assert len({id(group.key) for of in groups for group in of.values()}) == 4 * len(groups)


def test_a_layer_is_compiled_once_and_stays_within_its_budget(
    compiled: Engine, graphs: list[tuple[int, float]]
) -> None:
    assert len(graphs) == 4  # forward and backward, of the first layer and of all others
    lengths = set()
    for count in (2, 12, 30):  # the engine has tried the first two rows, whose length in a pack is the hidden size
        for batch in compiled.batches(rows(30)[:count]):
            torch.autograd.backward(compiled.loss(batch, seed=0))
            lengths.add(batch.input_ids.shape[1])
    assert {SIZE, 2 * SIZE} < lengths
    assert len(graphs) == 4
    tokens = SIZE  # that the code was made for
    kernels, moved = (sum(values) for values in zip(*graphs[2:], strict=True))
    assert KERNELS / 2 < kernels <= KERNELS
    assert NUMBERS / 2 < moved / (tokens * SIZE * 4) <= NUMBERS


def test_training_with_validations_gives_the_same_bytes_twice_and_compiles_nothing_more(
    compiled: Engine, graphs: list[tuple[int, float]]
) -> None:
    profile, found, before = PROFILE.model_copy(update={"steps": 9}), [], len(graphs)
    for _ in range(2):
        again = engine(compiled=True, rate=0.5)
        shared = read_params(PARAMS).section(Train)
        curve = Trainer(again, rows(30)[6:], rows(6), shared, profile).run()  # 8 steps an epoch
        assert [step for step, *_ in curve.validation] == [8, 9]
        found.append((curve.validation, [weight.detach() for weight in trained_weights(again.model).values()]))
    assert len(graphs) == before
    (losses, weights), (other_losses, other_weights) = found
    assert losses == other_losses
    assert all(torch.equal(one, other) for one, other in zip(weights, other_weights, strict=True))


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_masks_have_their_rate_and_are_independent_of_each_other(rate: float) -> None:
    keys = [torch.zeros(2, dtype=torch.int32) for _ in range(8)]
    x, masks = torch.zeros(512, 400), []
    for seed in (0, 1, 2**55):
        draw_keys(keys, seed)
        masks += [kept(x, key, rate).numpy().astype(np.float64) for key in keys]
    count, spread = x.numel(), (rate * (1 - rate)) ** 0.5
    for mask in masks:
        assert abs(1 - mask.mean() - rate) < 5 * spread / count**0.5
        for step in (1, 2, 8, 400):  # neighbours in a row, and in a column
            flat = mask.flatten() - (1 - rate)
            assert abs((flat[step:] * flat[:-step]).mean()) < 5 * spread**2 / count**0.5
        assert abs(mask.mean(0) - (1 - rate)).max() < 6 * spread / 512**0.5
        assert abs(mask.mean(1) - (1 - rate)).max() < 6 * spread / 400**0.5
    for one in range(len(masks)):
        for other in range(one):
            product = ((masks[one] - (1 - rate)) * (masks[other] - (1 - rate))).mean()
            assert abs(product) < 5 * spread**2 / count**0.5
