"""Muon takes the steps that PyTorch's own takes, in the precision of the weights."""

from __future__ import annotations

import torch

from howto.embedded.muon import Muon, orthogonal


def test_singular_values_are_brought_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 8, 8), (2, 40, 12), (2, 12, 40)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.3 and values.max() < 1.3


def test_steps_are_those_of_pytorchs_muon_but_for_its_rounding() -> None:
    torch.manual_seed(0)
    start = [torch.randn(24, 16), torch.randn(16, 24), torch.randn(16, 24), torch.randn(16, 16)]
    ours = [torch.nn.Parameter(weight.clone()) for weight in start]
    theirs = [torch.nn.Parameter(weight.clone()) for weight in start]
    optimizers = (Muon(ours, lr=0.02, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1))
    for _ in range(5):
        for mine, yours in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            yours.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, yours, before in zip(ours, theirs, start, strict=True):
        moved = (yours - before).norm()
        assert (mine - yours).norm() < 0.02 * moved  # theirs rounds to bfloat16: 8 bits
