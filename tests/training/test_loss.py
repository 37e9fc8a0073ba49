"""The fused loss is cross-entropy, and so is its gradient."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import howto.training.loss
from howto.training.loss import _LinearCrossEntropy


@pytest.mark.parametrize("chunk", [1, 7 * 50, 10**6])
def test_loss_and_gradient_are_those_of_cross_entropy(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(howto.training.loss, "CHUNK_LOGITS", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(23, 12, dtype=torch.float64, requires_grad=True)
    weight, labels = torch.randn(50, 12, dtype=torch.float64), torch.randint(50, (23,))
    expected = cross_entropy(hidden @ weight.T, labels, reduction="sum")
    found = _LinearCrossEntropy.apply(hidden, weight, labels)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(loss * 0.3, hidden) for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_a_label_whose_probability_underflows_has_a_finite_loss() -> None:
    hidden, weight = torch.tensor([[200.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    loss = _LinearCrossEntropy.apply(hidden, weight, torch.tensor([1]))  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(400.0)
