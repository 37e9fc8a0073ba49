"""Fused LoRA layers and norms give the results of PEFT and transformers, and dropout is random enough."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from howto.modeling.adapters.fused_lora import (
    HIDDEN_STATE_TOLERANCE,
    LoraDropout,
    keep_mask,
    relative_error,
    use_fused_lora,
    use_fused_norms,
)
from howto.training.compiled_layers import draw_dropout_keys
from tests.support.models import gemma2, llama


class TwoLayers(nn.Module):
    """A gradient has to pass through an adapted layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 40, bias=False), nn.Linear(40, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


def adapted(**settings: float) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["first", "second"], **settings)
    model = get_peft_model(TwoLayers(), config).to(torch.float64)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    return model  # type: ignore[no-any-return]


def outputs_and_gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    gradients = [weight.grad for weight in (x, *model.parameters()) if weight.grad is not None]
    assert len(gradients) >= 5
    return [y, *gradients]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_outputs_and_gradients_are_pefts(settings: dict[str, bool]) -> None:
    peft, fused = adapted(**settings), adapted(**settings)
    use_fused_lora(fused, 0.0)
    x = torch.randn(3, 5, 24, dtype=torch.float64)
    expected, found = outputs_and_gradients(peft, x), outputs_and_gradients(fused, x)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_dropout_masks_the_adapters_input_in_training_alone() -> None:
    model = adapted(lora_dropout=0.4)
    numbers = {name: number for number, (name, _) in enumerate(model.named_modules())}
    layers = [(numbers[name], layer) for name, layer in model.named_modules() if isinstance(layer, LoraLinear)]
    dropout = use_fused_lora(model, 0.4)
    dropout.seed = 7

    def reference(x: torch.Tensor) -> torch.Tensor:
        for position, (number, layer) in enumerate(layers):
            x = torch.tanh(x) if position else x
            masked = x * dropout.mask(x, number) if model.training else x
            x = layer.base_layer(x) + 3 * layer.lora_B["default"](layer.lora_A["default"](masked))  # alpha / r
        return x

    x = torch.randn(6, 24, dtype=torch.float64, requires_grad=True)
    for training in (False, True):
        model.train(training)
        torch.testing.assert_close(model(x), reference(x), rtol=1e-6, atol=1e-6)  # the mask is float32
    assert torch.autograd.gradcheck(model, (x,))


def masks_on_a_cpu(rate: float, shape: tuple[int, int]) -> list[torch.Tensor]:
    dropout, masks = LoraDropout(rate), []
    for dropout.seed in (1, 2, 2**55):
        for layer in (0, 1, 2):
            masks.append(dropout.mask(torch.empty(shape), layer))
            assert torch.equal(masks[-1], dropout.mask(torch.empty(shape), layer))
    assert sorted(set(masks[0].flatten().tolist())) == pytest.approx([0.0, 1 / (1 - rate)], rel=1e-6)
    return [mask > 0 for mask in masks]


def masks_on_a_gpu(rate: float, shape: tuple[int, int]) -> list[torch.Tensor]:
    keys, masks = [torch.zeros(2, dtype=torch.int32) for _ in range(8)], []
    for seed in (0, 1, 2**55):
        draw_dropout_keys(keys, seed)
        masks += [keep_mask(torch.zeros(shape), key, rate) for key in keys]
    return masks


@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("masks_of", [masks_on_a_cpu, masks_on_a_gpu])
def test_masks_have_their_rate_and_are_independent(masks_of: object, rate: float) -> None:
    shape = rows, columns = 512, 400
    masks = [mask.numpy().astype(np.float64) - (1 - rate) for mask in masks_of(rate, shape)]  # type: ignore[operator]
    variance, count = rate * (1 - rate), rows * columns
    for number, mask in enumerate(masks):
        flat = mask.flatten()
        assert abs(flat.mean()) < 5 * (variance / count) ** 0.5
        assert abs(mask.mean(0)).max() < 6 * (variance / rows) ** 0.5
        assert abs(mask.mean(1)).max() < 6 * (variance / columns) ** 0.5
        products = [flat[step:] * flat[:-step] for step in (1, 2, 8, columns)]  # neighbours in a row, and in a column
        products += [flat * other.flatten() for other in masks[:number]]
        assert all(abs(product.mean()) < 5 * variance / count**0.5 for product in products)


def test_layers_that_read_one_tensor_share_its_mask_and_others_do_not() -> None:
    dropout, x = LoraDropout(0.5), torch.randn(64, 64)
    mask, masked = dropout.apply(x, 0)
    assert torch.equal(masked, x * mask) and torch.equal(mask, dropout.mask(x, 0))
    assert dropout.apply(x, 1)[0] is mask
    assert torch.equal(dropout.apply(x.clone(), 1)[0], dropout.mask(x, 1))
    dropout.seed = 1
    assert not torch.equal(dropout.apply(x, 0)[0], mask)
    before = dropout.apply(x, 0)[1]
    x += 1  # changed in place: another input
    assert not torch.equal(dropout.apply(x, 0)[1], before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_fused_norms_give_the_models_own_hidden_states(dtype: torch.dtype) -> None:
    plain, fused = (llama(50).to(dtype) for _ in range(2))
    with torch.no_grad():
        for model in (plain, fused):
            for number, (name, weight) in enumerate(model.named_parameters()):
                if "norm" in name:
                    weight.normal_(1, 0.2, generator=torch.Generator().manual_seed(number))
        assert use_fused_norms(fused) == 5  # two of each layer, and the last one
        ids = torch.arange(3, 43)[None]
        found, expected = (model.get_decoder()(input_ids=ids).last_hidden_state for model in (fused, plain))
    assert relative_error(found, expected) <= HIDDEN_STATE_TOLERANCE[dtype]


def test_norms_of_another_kind_stay_as_they_are() -> None:
    assert use_fused_norms(gemma2(50)) == 0  # its norms multiply by 1 + weight
