"""What replaces the model's own forward pass is compared with it first, and left out or refused if it differs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from transformers import AutoModelForCausalLM, BertConfig

import howto.modeling.packed_attention
import howto.training.forward
from howto.core.errors import UserError
from howto.modeling.adapters.fused_lora import HIDDEN_STATE_TOLERANCE, LoraDropout, relative_error
from howto.modeling.collate import collate, pack
from howto.training.forward import Engine, response_states
from howto.training.lora import add_adapter, trained_weights
from howto.training.loss import response_loss
from tests.support.architectures import architecture
from tests.support.models import SHARED, adapted, example_rows, llama, train_profile

CPU = torch.device("cpu")


def model(dtype: torch.dtype = torch.float32) -> PeftModel:
    return adapted(llama(50, key_value_heads=2).to(dtype)).eval()


def make_engine(model: PeftModel) -> Engine:
    return Engine(model, example_rows(12), SHARED, train_profile(), pad=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounding_is_far_below_the_tolerance_and_a_leaking_mask_far_above(dtype: torch.dtype) -> None:
    adapted_model, rows = model(dtype), example_rows(12)[2:10]
    base = adapted_model.get_base_model()
    expected = response_states(base, [collate([row], 0, CPU) for row in rows])
    step = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-24
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in base.parameters():  # each number becomes one of its neighbours
            weight.mul_(1 + step * (2 * torch.randint(2, weight.shape, generator=generator) - 1).to(dtype))
    packed, engine = pack(rows, CPU), make_engine(adapted_model)
    assert 0 < relative_error(response_states(engine.base, [packed]), expected) < HIDDEN_STATE_TOLERANCE[dtype]
    assert packed.row_ends is not None
    packed.row_ends[1:-1] = 0  # one row as long as the pack
    leaking = relative_error(response_states(engine.base, [packed]), expected)
    assert leaking > 5 * HIDDEN_STATE_TOLERANCE[torch.bfloat16]


def test_a_model_whose_rows_cannot_be_packed_is_trained_on_padded_rows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leaky(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return attended.transpose(1, 2), None

    monkeypatch.setattr(howto.modeling.packed_attention, "packed_attention", leaky)
    engine, rows = make_engine(model()), example_rows(12)
    assert not engine.packing and "rows of LlamaForCausalLM are padded" in capsys.readouterr().err
    (batch,) = engine.batches(rows[:8])
    with torch.no_grad():
        alone = sum(response_loss(model().get_base_model(), collate([row], 0, CPU), fused=False) for row in rows[:8])
        torch.testing.assert_close(engine.loss(batch), alone)


@pytest.mark.parametrize("packing", [True, False])
def test_a_models_own_dropout_is_drawn_from_the_seed_and_off_without_one(*, packing: bool) -> None:
    rates = {"resid_pdrop": 0.3, "embd_pdrop": 0.3, "attn_pdrop": 0.3}
    peft = adapted(architecture("gpt2", **rates), dropout=0.0)
    rows, shared = example_rows(8), SHARED.model_copy(update={"packing": packing})
    alone = sum(response_loss(peft.get_base_model(), collate([row], 0, CPU), fused=False).item() for row in rows)
    engine = Engine(peft, rows, shared, train_profile(), pad=0)
    (batch,) = engine.batches(rows)
    first, again, other = (engine.loss(batch, seed=seed).item() for seed in (1, 1, 2))
    assert first == again != other and engine.packing is packing
    assert engine.loss(batch).item() == pytest.approx(alone, rel=1e-5)


def test_a_model_that_sees_the_future_is_refused() -> None:
    bert = AutoModelForCausalLM.from_config(BertConfig(vocab_size=50, hidden_size=16, num_attention_heads=2))
    peft = add_adapter(bert.eval(), SHARED.lora.model_copy(update={"target_modules": ["query"]}), Path("base"))
    with pytest.raises(UserError, match=r"BertLMHeadModel is not causal"):
        make_engine(peft)


def test_a_model_that_fails_with_its_adapter_is_one_line() -> None:
    peft = model()
    peft.get_base_model().model.layers[0].mlp.forward = lambda x: (x, x).shape  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"cannot compute a row with its adapter .* train.lora.exclude_modules"):
        make_engine(peft)


def test_rows_that_depend_on_their_batch_even_if_padded_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    peft = model()
    decoder = peft.get_base_model().get_decoder()
    forward = decoder.forward

    def scaled(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.last_hidden_state *= inputs["input_ids"].numel()
        return output

    monkeypatch.setattr(decoder, "forward", scaled)
    with pytest.raises(UserError, match=r"rows of LlamaForCausalLM depend on each other"):
        make_engine(peft)


def test_lora_layers_that_compute_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_adapter(model: torch.nn.Module, rate: float) -> LoraDropout:
        for module in model.modules():
            if isinstance(module, LoraLinear):
                module.forward = module.base_layer.forward
        return LoraDropout(rate)

    monkeypatch.setattr(howto.training.forward, "use_fused_lora", without_adapter)
    with pytest.raises(UserError, match="LoRA layers"):
        make_engine(model())


def test_if_the_fused_loss_differs_the_model_computes_the_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def half(*arguments: Any, fused: bool = True, **more: Any) -> torch.Tensor:
        return response_loss(*arguments, fused=fused, **more) * (0.5 if fused else 1.0)

    monkeypatch.setattr(howto.training.forward, "response_loss", half)
    assert not make_engine(model()).has_fused_loss
    assert "slower" in capsys.readouterr().err


def test_the_checks_leave_the_adapter_as_it_was() -> None:
    adapted_model = model()
    before = {name: weight.detach().clone() for name, weight in trained_weights(adapted_model).items()}
    make_engine(adapted_model)
    assert all(torch.equal(weight, before[name]) for name, weight in trained_weights(adapted_model).items())
