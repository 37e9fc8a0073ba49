"""Compute LoRA layers that read the same tensor (query, key and value; gate and up) together, for a GPU.

Their frozen weights and scaled B matrices are side by side in one matrix [outputs, inputs + ranks]. So one product
replaces three for each adapter. In the backward pass, one product gives the gradient of the inputs and of the adapters'
inner activations.
"""

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from howto.modeling.adapters.fused_lora import is_plain_lora, keep_mask

ALIGNED_COLUMNS = 8  # 16 bytes in bfloat16, which fast kernels for matrix products need


class GroupedLora:
    """The LoRA layers of a model in groups by input, until `undo`."""

    def __init__(self, decoder: nn.Module, sample: dict[str, Any], rate: float = 0.0) -> None:
        """Group the layers by running the decoder on the inputs `sample`; `rate` is of dropout in training.

        Raise RuntimeError if there is no plain LoRA layer, or one is called twice.
        """
        layers_by_input = _layers_by_input(decoder, sample)
        layers = [layer for group in layers_by_input for layer in group]
        if not layers or len(layers) != len(set(layers)):
            raise RuntimeError("a LoRA layer is called twice" if layers else "no plain LoRA layer")
        self._forwards = [(layer, layer.forward) for layer in layers]
        groups = [LoraGroup(group, rate) for group in layers_by_input]
        for group, members in zip(groups, layers_by_input, strict=True):
            for number, layer in enumerate(members):
                layer.__dict__["group"] = group
                layer.forward = MethodType(_next_output if number else _first_output, layer)
        self.dropout_keys = [group.key for group in groups]
        trained: list[Tensor] = [weight for group in groups for weight in group.trained]
        self._trained_a, self._trained_b = trained[::2], trained[1::2]
        copies = zip(*(copy for group in groups for copy in group.copies()), strict=True)
        self._copies_a, self._copies_b, self._scales = map(list, copies)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the adapters' current weights into the groups' matrices, in the base's precision."""
        torch._foreach_copy_(self._copies_a, self._trained_a)
        torch._foreach_copy_(self._copies_b, torch._foreach_mul(self._trained_b, self._scales))

    def undo(self) -> None:
        """Let the layers compute as before."""
        for layer, forward in self._forwards:
            layer.forward = forward


class LoraGroup(nn.Module):
    """LoRA layers that read the same tensor, as one product."""

    def __init__(self, layers: list[Any], rate: float) -> None:
        """Make the group's matrix; the base layers' weights become views of it."""
        super().__init__()
        self.rate = rate
        self.outputs = [layer.base_layer.out_features for layer in layers]
        self.ranks = [layer.r["default"] for layer in layers]
        self.scales = [float(layer.scaling["default"]) for layer in layers]
        weights = [layer.base_layer.weight for layer in layers]
        inputs, columns = weights[0].shape[1], -(-sum(self.ranks) // ALIGNED_COLUMNS) * ALIGNED_COLUMNS
        wide = weights[0].new_zeros(sum(self.outputs), inputs + columns)
        for weight, part in zip(weights, wide.split(self.outputs), strict=True):
            part[:, :inputs] = weight.data
            weight.data = part[:, :inputs]
        # The compiler treats the shapes of parameters as constants.
        self.wide = nn.Parameter(wide, requires_grad=False)  # [outputs, inputs + ranks]
        self.a = nn.Parameter(wide.new_zeros(columns, inputs), requires_grad=False)  # [ranks, inputs]
        # The dropout mask is a hash of this. Not a view: code compiled for one is good only for views at its offset.
        self.key = torch.zeros(2, dtype=torch.int32, device=wide.device)
        self.pending: list[Tensor] = []  # outputs for the group's next layers
        parts = [part["default"].weight for layer in layers for part in (layer.lora_A, layer.lora_B)]
        self.trained: tuple[nn.Parameter, ...] = tuple(parts)  # not registered here: they are the model's

    def copies(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield for each layer the views that hold copies of its A and B, and the scale of B."""
        a, wide = self.a.data, self.wide.data  # outside of autograd: A and B change between passes alone
        row = top = 0
        for outputs, rank, scale in zip(self.outputs, self.ranks, self.scales, strict=True):
            column = a.shape[1] + row
            yield a[row : row + rank], wide[top : top + outputs, column : column + rank], scale
            row, top = row + rank, top + outputs

    def forward(self, x: Tensor, rate: float) -> list[Tensor]:
        """Return the outputs [..., out] of each layer for inputs x [..., in]."""
        y = _GroupedLora.apply(  # type: ignore[no-untyped-call]
            x.flatten(0, -2), self.wide, self.a, self.key, rate, self.outputs, self.ranks, self.scales, *self.trained
        )
        return [part.view(*x.shape[:-1], -1) for part in y.split(self.outputs, dim=1)]


class _GroupedLora(torch.autograd.Function):
    """y = [x, inner] [W, s B]' with inner = dropout(x) A'. The trained weights are arguments for their gradients."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        x: Tensor,
        wide: Tensor,
        a: Tensor,
        key: Tensor,
        rate: float,
        outputs: list[int],
        ranks: list[int],
        scales: list[float],
        *trained: Tensor,
    ) -> Tensor:
        """Compute y from `x` [tokens, inputs], `wide` [outputs, inputs + ranks] and `a` [ranks, inputs]."""
        masked = _dropout(x, key, rate)
        inner = masked @ a.T
        ctx.save_for_backward(masked, inner, wide, a, key)
        ctx.rate, ctx.outputs, ctx.ranks, ctx.scales, ctx.dtype = rate, outputs, ranks, scales, trained[0].dtype
        return torch.cat([x, inner], dim=1) @ wide.T

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        masked, inner, wide, a, key = ctx.saved_tensors
        (grad,) = gradients  # [tokens, outputs]
        grad_x, grad_inner = (grad @ wide).split([a.shape[1], a.shape[0]], dim=1)
        grad_x = grad_x + _dropout(grad_inner @ a, key, ctx.rate)
        grad_a = (grad_inner.T @ masked).to(ctx.dtype)
        grad_b = (grad.T @ inner).to(ctx.dtype)  # [outputs, ranks]: a layer's gradient is a block of it
        trained, row, top = [], 0, 0
        for outputs, rank, scale in zip(ctx.outputs, ctx.ranks, ctx.scales, strict=True):
            trained += [grad_a[row : row + rank], grad_b[top : top + outputs, row : row + rank] * scale]
            row, top = row + rank, top + outputs
        return (grad_x, *[None] * 7, *trained)


def _dropout(x: Tensor, key: Tensor, rate: float) -> Tensor:
    return torch.where(keep_mask(x, key, rate), x * (1 / (1 - rate)), 0.0) if rate else x


def _layers_by_input(decoder: nn.Module, sample: dict[str, Any]) -> list[list[Any]]:
    """Return the plain LoRA layers in the order of their calls, those with the same input together."""
    groups: list[list[Any]] = []
    last_input: list[Tensor] = []

    def record(module: nn.Module, args: tuple[Any, ...]) -> None:
        if not last_input or last_input[0] is not args[0]:
            groups.append([])
            last_input[:] = [args[0]]
        groups[-1].append(module)

    layers = [module for module in decoder.modules() if isinstance(module, LoraLinear) and is_plain_lora(module)]
    hooks = [layer.register_forward_pre_hook(record) for layer in layers]
    with torch.no_grad():
        decoder(**sample, use_cache=False)
    for hook in hooks:
        hook.remove()
    return groups


def _first_output(self: Any, x: Tensor) -> Tensor:
    """Compute the outputs of a group; return the first and keep the others."""
    group = self.group
    own, *others = group(x, group.rate if self.training else 0.0)
    group.pending = others
    return own  # type: ignore[no-any-return]


def _next_output(self: Any, x: Tensor) -> Tensor:
    """Return an output that the group's first layer has computed."""
    own, *others = self.group.pending
    self.group.pending = others
    return own  # type: ignore[no-any-return]
