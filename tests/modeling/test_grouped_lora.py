"""Adapters that are computed together answer as PEFT's own do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from howto.inference.generator import use_groups
from howto.modeling.fused_lora import OF_STATES, distance, use_lean_layers
from howto.modeling.grouped_lora import Groups
from howto.params import read_params
from howto.training.config import Train
from howto.training.forward import nonzero_adapter
from howto.training.lora import add_adapter
from tests.support.models import llama
from tests.training.test_compiled_layers import PARAMS

IDS = torch.arange(3, 33).view(2, 15)


def adapted(dtype: torch.dtype = torch.float32, **lora: object) -> PeftModel:
    settings = read_params(PARAMS).section(Train).lora.model_copy(update=lora)
    model = add_adapter(llama(50, key_value_heads=2).to(dtype), settings, Path("base")).eval()
    for number, (name, weight) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(number))
    return model


@torch.no_grad()
def states(model: PeftModel) -> torch.Tensor:
    return model.get_base_model().get_decoder()(input_ids=IDS).last_hidden_state  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "lora", [{}, {"r": 3}, {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": 5.0}}], ids=str
)
def test_hidden_states_are_pefts_own(lora: dict[str, object], dtype: torch.dtype) -> None:
    wanted, model = states(adapted(dtype, **lora)), adapted(dtype, **lora)
    use_lean_layers(model, 0.0)
    assert use_groups(model, IDS[0].tolist())
    assert distance(states(model), wanted) <= OF_STATES[dtype]


def test_weights_that_change_are_taken_over_and_what_is_undone_computes_as_before() -> None:
    model = adapted()
    before, groups = states(model), Groups(model.get_base_model().get_decoder(), {"input_ids": IDS})
    with nonzero_adapter(model):
        groups.refresh()
        other = adapted()
        with nonzero_adapter(other):
            assert distance(states(model), states(other)) <= OF_STATES[torch.float32]
    assert distance(states(model), before) > 0.01
    groups.undo()
    assert torch.equal(states(model), before)


def test_adapters_of_another_kind_stay_as_they_are() -> None:
    model = adapted(dora=True)
    wanted = states(model)
    assert not use_groups(model, IDS[0].tolist())
    assert torch.equal(states(model), wanted)
