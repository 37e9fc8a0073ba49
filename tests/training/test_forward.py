"""What replaces the model's own forward pass is compared with it first, and refused if it gives something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear

import howto.training.forward
from howto.core.errors import UserError
from howto.modeling.collate import collate, pack
from howto.modeling.fused_lora import HIDDEN_STATE_TOLERANCE, Dropout, relative_error
from howto.params import read_params
from howto.training.config import Train
from howto.training.forward import Engine, nonzero_adapter, response_states
from howto.training.lora import add_adapter, trained_weights
from howto.training.loss import response_loss
from tests.support.models import llama
from tests.training.test_compiled_layers import PARAMS, PROFILE, rows

CPU = torch.device("cpu")


def adapted(dtype: torch.dtype = torch.float32) -> PeftModel:
    shared = read_params(PARAMS).section(Train)
    return add_adapter(llama(50, key_value_heads=2).to(dtype), shared.lora, Path("base"))


def engine(model: PeftModel) -> Engine:
    return Engine(model, rows(12), read_params(PARAMS).section(Train), PROFILE, 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounding_is_far_below_the_limit_and_a_leaking_mask_far_above(dtype: torch.dtype) -> None:
    model, eight = adapted(dtype), rows(12)[2:10]
    base = model.get_base_model()
    alone = response_states(base, [collate([row], 0, CPU) for row in eight])
    step = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-24
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in base.parameters():  # each number to one of its neighbours
            weight.mul_(1 + step * (2 * torch.randint(2, weight.shape, generator=generator) - 1).to(dtype))
    packed, made = pack(eight, CPU), engine(model)
    assert 0 < relative_error(response_states(made.base, [packed]), alone) < HIDDEN_STATE_TOLERANCE[dtype]
    assert packed.ends is not None
    packed.ends[1:-1] = 0  # one row as long as the pack
    assert relative_error(response_states(made.base, [packed]), alone) > 5 * HIDDEN_STATE_TOLERANCE[torch.bfloat16]


def test_adapters_that_are_left_out_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(model: torch.nn.Module, rate: float) -> Dropout:
        for module in model.modules():
            if isinstance(module, LoraLinear):
                module.forward = module.base_layer.forward
        return Dropout(rate)

    monkeypatch.setattr(howto.training.forward, "use_fused_lora", without)
    with pytest.raises(UserError, match="adapters"):
        engine(adapted())


def test_a_loss_that_is_another_is_computed_by_the_model_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def half(*arguments: Any, fused: bool = True, **more: Any) -> torch.Tensor:
        return response_loss(*arguments, fused=fused, **more) * (0.5 if fused else 1.0)

    monkeypatch.setattr(howto.training.forward, "response_loss", half)
    assert not engine(adapted())._fused
    assert "slower" in capsys.readouterr().err


def test_the_adapter_is_afterwards_what_it_was_before() -> None:
    model = adapted()
    before = {name: weight.detach().clone() for name, weight in trained_weights(model).items()}
    with nonzero_adapter(model):
        assert all(weight.any() for weight in trained_weights(model).values())
    engine(model)
    for name, weight in trained_weights(model).items():
        assert torch.equal(weight, before[name])
