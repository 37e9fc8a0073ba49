"""What is done in few steps is what PEFT, torch and the textbook do in many."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn.functional import cross_entropy

import howto.training.loss
from howto.modeling.fused_lora import OF_STATES, Dropout, distance, use_fused_norms, use_lean_layers
from tests.support.models import gemma2, llama


class Two(nn.Module):
    """Two layers, so that a gradient has to pass through an adapted one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 40, bias=False), nn.Linear(40, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))  # type: ignore[no-any-return]


def adapted(**settings: float) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["first", "second"], **settings)
    model = get_peft_model(Two(), config).to(torch.float64)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    return model  # type: ignore[no-any-return]


def gradients(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().sum().backward()
    assert x.grad is not None
    return y, [x.grad, *(w.grad for w in model.parameters() if w.grad is not None)]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_adapters_give_pefts_outputs_and_gradients(settings: dict[str, bool]) -> None:
    peft, lean = adapted(**settings), adapted(**settings)
    use_lean_layers(lean, 0.0)
    x = torch.randn(3, 5, 24, dtype=torch.float64)
    y, wanted = gradients(peft, x)
    found_y, found = gradients(lean, x)
    torch.testing.assert_close(found_y, y, rtol=1e-12, atol=1e-12)
    assert len(found) == len(wanted) == (7 if "use_dora" in settings else 5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_adapters_with_dropout_are_pefts_with_the_same_mask() -> None:
    peft, lean = adapted(lora_dropout=0.4), adapted(lora_dropout=0.4)
    dropout = use_lean_layers(lean, 0.4)
    dropout.seed = 7
    numbers = {id(m): n for n, m in enumerate(lean.modules()) if isinstance(m, LoraLinear)}
    layers = [m for m in peft.modules() if isinstance(m, LoraLinear)]

    class Same(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * dropout.scale_mask(x, self.number)

    for layer, number in zip(layers, numbers.values(), strict=True):
        layer.lora_dropout["default"] = Same(number)
    x = torch.randn(6, 24, dtype=torch.float64)
    for one, other in zip(gradients(lean.train(), x)[1], gradients(peft.train(), x)[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # the mask is float32


def test_the_gradient_is_that_of_the_function() -> None:
    model = adapted(lora_dropout=0.3)
    use_lean_layers(model, 0.3).seed = 3
    model.train()
    x = torch.randn(3, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (x,))


def test_dropout_drops_at_its_rate_and_keeps_the_mean() -> None:
    dropout = Dropout(0.05)
    mask = dropout.scale_mask(torch.empty(1000, 1000), 0)
    dropped = (mask == 0).double().mean().item()
    assert dropped == pytest.approx(0.05, abs=5 * (0.05 * 0.95 / 1e6) ** 0.5)
    assert sorted(set(mask.flatten().tolist())) == pytest.approx([0.0, 1 / 0.95], rel=1e-6)


def test_a_mask_is_a_function_of_seed_and_layer_and_no_two_are_alike() -> None:
    dropout, like = Dropout(0.5), torch.empty(64, 64)
    masks = {}
    for dropout.seed in (1, 2):
        for layer in (0, 1, 2):
            masks[dropout.seed, layer] = dropout.scale_mask(like, layer)
            assert torch.equal(masks[dropout.seed, layer], dropout.scale_mask(like, layer))
    flat = torch.stack([(mask > 0).double().flatten() - 0.5 for mask in masks.values()])
    alike = (flat @ flat.T) / (0.25 * like.numel()) - torch.eye(len(flat), dtype=torch.float64)
    assert alike.abs().max() < 5 / like.numel() ** 0.5


def test_layers_that_read_one_tensor_share_its_mask_and_others_do_not() -> None:
    dropout, x = Dropout(0.5), torch.randn(64, 64)
    mask, masked = dropout.masked(x, 0)
    assert torch.equal(masked, x * mask) and torch.equal(mask, dropout.scale_mask(x, 0))
    assert dropout.masked(x, 1)[0] is mask
    assert torch.equal(dropout.masked(x.clone(), 1)[0], dropout.scale_mask(x, 1))
    dropout.seed = 1
    assert not torch.equal(dropout.masked(x, 0)[0], mask)
    before = dropout.masked(x, 0)[1]
    x += 1
    assert not torch.equal(dropout.masked(x, 0)[1], before), "a tensor that was changed in place is another input"


def test_there_is_no_dropout_outside_of_training() -> None:
    model = adapted(lora_dropout=0.9)
    plain = copy.deepcopy(model).eval()
    use_lean_layers(model, 0.9)
    x = torch.randn(4, 24, dtype=torch.float64)
    torch.testing.assert_close(model.eval()(x), plain(x))


@pytest.mark.parametrize("chunk", [1, 7 * 50, 10**6])
def test_the_loss_is_cross_entropy_and_so_is_its_gradient(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(howto.training.loss, "CHUNK", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(23, 12, dtype=torch.float64, requires_grad=True)
    weight, labels = torch.randn(50, 12, dtype=torch.float64), torch.randint(50, (23,))
    wanted = cross_entropy(hidden @ weight.T, labels, reduction="sum")
    (wanted_gradient,) = torch.autograd.grad(wanted * 0.3, hidden)
    found = howto.training.loss._LinearCrossEntropy.apply(hidden, weight, labels)  # type: ignore[no-untyped-call]
    (gradient,) = torch.autograd.grad(found * 0.3, hidden)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-10, atol=1e-12)


def test_a_label_whose_probability_is_too_small_for_a_float_has_a_finite_loss() -> None:
    hidden, weight = torch.tensor([[200.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    loss = howto.training.loss._LinearCrossEntropy.apply(hidden, weight, torch.tensor([1]))  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(400.0)


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
        found, wanted = (model.get_decoder()(input_ids=ids).last_hidden_state for model in (fused, plain))
    assert distance(found, wanted) <= OF_STATES[dtype]


def test_norms_of_another_kind_are_left_as_they_are() -> None:
    model = gemma2(50)  # whose norms multiply by 1 + weight
    with torch.no_grad():
        wanted = model(input_ids=torch.arange(9)[None]).logits
        assert use_fused_norms(model) == 0
        torch.testing.assert_close(model(input_ids=torch.arange(9)[None]).logits, wanted, rtol=0, atol=0)
