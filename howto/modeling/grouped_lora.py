"""Adapters that read the same tensor (query, key and value; gate and up), computed together, for a GPU.

Their frozen weights and their scaled B stand side by side in one matrix [outputs, inputs + ranks], so that one product
gives what would take three for each adapter. The backward pass gets the gradient of the inputs and of the adapters'
inner activations from one product too.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

from howto.modeling.fused_lora import is_plain, kept

ALIGNED = 8  # columns: 16 bytes in bfloat16, which the fast kernels for products want


class Groups:
    """The adapters of a model in groups; until `undo` they compute so."""

    def __init__(self, decoder: nn.Module, sample: dict[str, Any], rate: float = 0.0) -> None:
        """`sample` are inputs of the decoder, with which it is found out which adapters read the same tensor.

        `rate` is that of the adapters' dropout in training.

        Raises:
            RuntimeError: there is no adapter that can be computed so.
        """
        found = _adapters_by_input(decoder, sample)
        called = [adapter for adapters in found for adapter in adapters]
        if not called or len(called) != len(set(called)):
            raise RuntimeError("no adapter is a plain one" if not called else "an adapter is used twice")
        self._forwards = [(adapter, adapter.forward) for adapter in called]
        groups = [AdapterGroup(adapters, rate) for adapters in found]
        self.keys = [group.key for group in groups]
        trained: list[torch.Tensor] = []
        for group, adapters in zip(groups, found, strict=True):
            trained += group.trained
            for place, adapter in enumerate(adapters):
                adapter.__dict__["group"] = group
                adapter.forward = MethodType(_next_output if place else _first_output, adapter)
        self._from_a, self._from_b = trained[::2], trained[1::2]
        places = [place for group in groups for place in group.places()]
        self._to_a, self._to_b = [a for a, _, _ in places], [b for _, b, _ in places]
        self._scales = [scale for *_, scale in places]
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the adapters' weights as they are now, in the base's precision."""
        torch._foreach_copy_(self._to_a, self._from_a)
        torch._foreach_copy_(self._to_b, torch._foreach_mul(self._from_b, self._scales))

    def undo(self) -> None:
        """Let the adapters compute as before."""
        for adapter, forward in self._forwards:
            adapter.forward = forward


class AdapterGroup(nn.Module):
    """Adapters that read the same tensor, and their base layers, as one product."""

    def __init__(self, adapters: list[Any], rate: float) -> None:
        """The base layers' weights become views of this group's matrix."""
        super().__init__()
        self.rate = rate
        self.outputs = [adapter.base_layer.out_features for adapter in adapters]
        self.ranks = [adapter.r["default"] for adapter in adapters]
        self.scales = [float(adapter.scaling["default"]) for adapter in adapters]
        weights = [adapter.base_layer.weight for adapter in adapters]
        inputs, width = weights[0].shape[1], -(-sum(self.ranks) // ALIGNED) * ALIGNED
        wide = weights[0].new_zeros(sum(self.outputs), inputs + width)
        for weight, part in zip(weights, wide.split(self.outputs), strict=True):
            part[:, :inputs] = weight.data
            weight.data = part[:, :inputs]
        # Parameters, for their shapes are then constants to the compiler.
        self.wide = nn.Parameter(wide, requires_grad=False)  # [outputs, inputs + ranks]
        self.a = nn.Parameter(wide.new_zeros(width, inputs), requires_grad=False)  # [ranks, inputs]
        # A tensor of its own: code compiled for a view is good for a view at the same offset alone.
        self.key = torch.zeros(2, dtype=torch.int32, device=wide.device)  # what the dropout's mask is a hash of
        self.found: list[torch.Tensor] = []  # outputs that the next adapters of the group will be asked for
        # Not registered as this module's: they are the model's.
        self.trained: tuple[nn.Parameter, ...] = tuple(
            part["default"].weight for adapter in adapters for part in (adapter.lora_A, adapter.lora_B)
        )

    def places(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
        """Yield where A and B of each adapter go, and what B is multiplied by."""
        a, wide = self.a.data, self.wide.data  # autograd need not know: A and B change between passes alone
        row = top = 0
        for outputs, rank, scale in zip(self.outputs, self.ranks, self.scales, strict=True):
            place = a.shape[1] + row
            yield a[row : row + rank], wide[top : top + outputs, place : place + rank], scale
            row, top = row + rank, top + outputs

    def forward(self, x: torch.Tensor, rate: float) -> list[torch.Tensor]:
        """Return the outputs [..., outputs] of each adapter on its base layer for inputs x [..., inputs]."""
        y = _Grouped.apply(  # type: ignore[no-untyped-call]
            x.flatten(0, -2), self.wide, self.a, self.key, rate, self.outputs, self.ranks, self.scales, *self.trained
        )
        return [part.view(*x.shape[:-1], -1) for part in y.split(self.outputs, dim=1)]


class _Grouped(torch.autograd.Function):
    """y = [x, inner] [W, s B]' with inner = dropout(x) A'. The trained weights are arguments for their gradients."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        x: torch.Tensor,
        wide: torch.Tensor,
        a: torch.Tensor,
        key: torch.Tensor,
        rate: float,
        outputs: list[int],
        ranks: list[int],
        scales: list[float],
        *trained: torch.Tensor,
    ) -> torch.Tensor:
        """`x` [tokens, inputs], `wide` [outputs, inputs + ranks], `a` [ranks, inputs]."""
        seen = _seen(x, key, rate)
        inner = seen @ a.T
        ctx.save_for_backward(seen, inner, wide, a, key)
        ctx.rate, ctx.outputs, ctx.ranks, ctx.scales, ctx.dtype = rate, outputs, ranks, scales, trained[0].dtype
        return torch.cat([x, inner], dim=1) @ wide.T

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Gradients of `x` and of the trained weights."""
        seen, inner, wide, a, key = ctx.saved_tensors
        (grad,) = gradients  # [tokens, outputs]
        grad_x, grad_inner = (grad @ wide).split([a.shape[1], a.shape[0]], dim=1)
        grad_x = grad_x + _seen(grad_inner @ a, key, ctx.rate)
        grad_a = (grad_inner.T @ seen).to(ctx.dtype)
        grad_b = (grad.T @ inner).to(ctx.dtype)  # [outputs, ranks]: those of an adapter are a block of it
        trained, row, top = [], 0, 0
        for outputs, rank, scale in zip(ctx.outputs, ctx.ranks, ctx.scales, strict=True):
            trained += [grad_a[row : row + rank], grad_b[top : top + outputs, row : row + rank] * scale]
            row, top = row + rank, top + outputs
        return (grad_x, *[None] * 7, *trained)


def _seen(x: torch.Tensor, key: torch.Tensor, rate: float) -> torch.Tensor:
    """Return what dropout leaves of x, scaled up; going back, of its gradient."""
    return torch.where(kept(x, key, rate), x * (1 / (1 - rate)), 0.0) if rate else x


def _adapters_by_input(decoder: nn.Module, sample: dict[str, Any]) -> list[list[Any]]:
    """Return the adapters in the order in which they are called, those with the same input together."""
    groups: list[list[Any]] = []
    last: list[torch.Tensor] = []

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not last or last[0] is not args[0]:
            groups.append([])
            last[:] = [args[0]]
        groups[-1].append(module)

    hooks = [
        module.register_forward_pre_hook(note)
        for module in decoder.modules()
        if isinstance(module, LoraLinear) and is_plain(module)
    ]
    with torch.no_grad():
        decoder(**sample, use_cache=False)
    for hook in hooks:
        hook.remove()
    return groups


def _first_output(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Compute the outputs of a group, keep those of its other adapters, and return one's own."""
    group = self.group
    own, *others = group(x, group.rate if self.training else 0.0)
    group.found = others
    return own  # type: ignore[no-any-return]


def _next_output(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Return what the group's first adapter has computed."""
    own, *others = self.group.found
    self.group.found = others
    return own  # type: ignore[no-any-return]
