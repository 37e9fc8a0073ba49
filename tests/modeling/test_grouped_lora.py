"""LoRA layers that are computed together give PEFT's results."""

from typing import Any

import pytest
import torch
from peft import PeftModel

from howto.inference.generator import use_grouped_lora
from howto.modeling.adapters.fused_lora import HIDDEN_STATE_TOLERANCE, relative_error, use_fused_lora
from howto.modeling.adapters.grouped_lora import GroupedLora
from howto.training.forward import nonzero_adapter
from tests.support.models import adapted, llama

IDS = torch.arange(3, 33).view(2, 15)


def model(dtype: torch.dtype = torch.float32, **lora: Any) -> PeftModel:
    return adapted(llama(50, key_value_heads=2).to(dtype), **lora).eval()


@torch.no_grad()
def states(model: PeftModel) -> torch.Tensor:
    return model.get_base_model().get_decoder()(input_ids=IDS).last_hidden_state  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "lora", [{}, {"r": 3}, {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": 5.0}}], ids=str
)
def test_hidden_states_are_pefts(lora: dict[str, Any], dtype: torch.dtype) -> None:
    expected, grouped = states(model(dtype, **lora)), model(dtype, **lora)
    use_fused_lora(grouped, 0.0)
    assert use_grouped_lora(grouped, IDS[0].tolist())
    assert relative_error(states(grouped), expected) <= HIDDEN_STATE_TOLERANCE[dtype]


def test_changed_weights_count_after_a_refresh_and_undo_restores_the_layers() -> None:
    grouped, plain = model(), model()
    before, groups = states(grouped), GroupedLora(grouped.get_base_model().get_decoder(), {"input_ids": IDS})
    assert len(groups.dropout_keys) == 2 * 4  # of each layer: q, k and v; o; gate and up; down
    with nonzero_adapter(grouped), nonzero_adapter(plain):
        groups.refresh()
        assert relative_error(states(grouped), states(plain)) <= HIDDEN_STATE_TOLERANCE[torch.float32]
    assert relative_error(states(grouped), before) > 0.01
    groups.undo()
    assert torch.equal(states(grouped), before)


def test_adapters_of_another_kind_stay_as_they_are() -> None:
    dora = model(dora=True)
    expected = states(dora)
    assert not use_grouped_lora(dora, IDS[0].tolist())
    assert torch.equal(states(dora), expected)
