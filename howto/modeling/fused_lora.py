"""The parts of a Llama-like layer that a general implementation does in many small steps, done in few.

On a CPU half of a LoRA training step would go into the adapter's dropout, into copies, and into products whose operands
lie the wrong way. What is here gives the same numbers but for rounding, and the same distribution of dropout.
"""

from __future__ import annotations

import weakref
from types import MethodType
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn

# How far hidden states that are computed in two ways may be apart, as relative norm. A mask that leaks gives 0.5.
OF_STATES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2}
BITS = 16  # of a random number that decides about one element


class Dropout:
    """Which elements an adapter does not see, drawn anew for each layer and each seed.

    A mask is a function of the seed and of the layer's number alone: so one that is needed again, when a layer is
    computed a second time to save memory, or by a run that goes on from a checkpoint, is the same.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.seed = 0
        self._limit = round(rate * 2**BITS) - 2 ** (BITS - 1)  # as a signed number
        self._last: tuple[weakref.ref[torch.Tensor], int, int] | None = None  # input, its version, seed
        self._of_last: tuple[torch.Tensor, torch.Tensor] | None = None  # mask, input times mask

    def masked(self, x: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mask of an adapter's input, and the input times the mask.

        Layers that read the same tensor (query, key and value; gate and up) share both, with the first one's number.
        """
        version = x._version
        last = self._last
        if self._of_last is None or last is None or last[0]() is not x or last[1:] != (version, self.seed):
            mask = self.scale_mask(x, layer)
            self._last, self._of_last = (weakref.ref(x), version, self.seed), (mask, x.detach() * mask)
        return self._of_last

    def scale_mask(self, like: torch.Tensor, layer: int) -> torch.Tensor:
        """1 / (1 - rate) where an element is kept, 0 where it is dropped; the shape and dtype of `like`."""
        if not like.is_cpu:
            key = torch.from_numpy(np.random.SFC64([self.seed, layer]).random_raw(1).view(np.int32)).to(like.device)
            return kept(like, key, self.rate).to(like.dtype).mul_(1 / (1 - self.rate))
        # torch draws one number at a time on a CPU; SFC64 draws four in a tenth of the time.
        numbers = np.random.SFC64([self.seed, layer]).random_raw(-(-like.numel() * BITS // 64)).view(np.int16)
        mask = torch.from_numpy(np.greater_equal(numbers[: like.numel()], self._limit).astype(np.float32))
        return mask.mul_(1 / (1 - self.rate)).to(like.dtype).view(like.shape)


def kept(x: torch.Tensor, key: torch.Tensor, rate: float) -> torch.Tensor:
    """Return which elements of `x` are kept: a bool tensor of its shape, True with probability 1 - `rate`.

    `key` is an int32 tensor of two random words. The hash is that of MurmurHash3's finalizer (Appleby 2011), keyed
    twice so that no mask is another one in another order; 32-bit products wrap.
    """
    index = torch.arange(x.numel(), dtype=torch.int32, device=x.device)
    # The key comes first: an index times a constant would be computed in the compiler's head, where nothing wraps.
    mixed = (index ^ key[0]) * -1640531527  # 2**32 divided by the golden ratio
    mixed = (_folded(mixed, 16) ^ key[1]) * -2048144789
    mixed = _folded(mixed, 13) * -1028477387
    return (mixed >= round(rate * 2**32) - 2**31).view(x.shape)


def _folded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Return x ^ (x >> bits), with zeros shifted in."""
    return x ^ ((x >> bits) & ((1 << (32 - bits)) - 1))


def use_lean_layers(model: nn.Module, rate: float) -> Dropout:
    """Let the adapters of a PEFT model compute as `_AdaptedLinear` does; DoRA and its like stay as they are.

    Gives the source of their dropout, whose seed is to be set before each forward pass.
    """
    dropout = Dropout(rate)
    for number, module in enumerate(model.modules()):
        if isinstance(module, LoraLinear) and is_plain(module):
            module.forward = MethodType(_forward(dropout, number), module)
    return dropout


def use_fused_norms(model: nn.Module) -> int:
    """Let a model's RMSNorms (Zhang and Sennrich 2019, arXiv:1910.07467) compute in one kernel of a GPU, not eight.

    The kernel rounds once, where the model's own arithmetic rounds twice. A norm of another kind, such as one that adds
    1 to its weight, stays as it is.

    Returns:
        The number of norms that were replaced.
    """
    replaced = 0
    for module in model.modules():
        epsilon, weight = getattr(module, "variance_epsilon", None), getattr(module, "weight", None)
        if epsilon is None or weight is None or weight.ndim != 1:
            continue
        probe = torch.linspace(-2, 3, len(weight), device=weight.device).to(weight.dtype)
        with torch.no_grad():
            is_same = distance(_fused_norm(module, probe), module(probe)) <= OF_STATES[weight.dtype]
        if is_same:
            module.forward = MethodType(_fused_norm, module)
            replaced += 1
    return replaced


def _fused_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


def is_plain(module: LoraLinear) -> bool:
    """Return whether an adapter is one of LoRA's own kind on a linear layer without bias."""
    return (
        list(module.lora_A) == ["default"]
        and not module.lora_variant
        and type(module.base_layer) is nn.Linear
        and module.base_layer.bias is None
        and module.lora_B["default"].bias is None
        and not module.merged
        and not module.disable_adapters
    )


def _forward(dropout: Dropout, number: int) -> Any:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        mask, seen = dropout.masked(x, number) if self.training and dropout.rate else (None, x)
        return _AdaptedLinear.apply(  # type: ignore[no-any-return, no-untyped-call]
            x,
            self.base_layer.weight,
            self.lora_A["default"].weight,
            self.lora_B["default"].weight,
            self.scaling["default"],
            mask,
            seen.detach(),
        )

    return forward


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the norm of the difference, relative to what is wanted; not a number if one of them has such."""
    difference = found.double() - wanted.double()
    return float(difference.norm() / wanted.double().norm())


class _AdaptedLinear(torch.autograd.Function):
    """y = x W' + s (x * mask) A' B', with W frozen. The thin products are laid out so that they run along memory."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        mask: torch.Tensor | None,
        seen: torch.Tensor,
    ) -> torch.Tensor:
        """`x` [..., in], `weight` [out, in], `a` [r, in], `b` [out, r]; `mask` and `seen` (x times mask) as `x`."""
        seen = seen.flatten(0, -2)  # [tokens, in]
        inner = a.to(x.dtype) @ seen.T  # [r, tokens]
        y = x.flatten(0, -2) @ weight.T
        y.addmm_(inner.T, b.to(x.dtype).T, alpha=scaling)
        ctx.save_for_backward(weight, a, b, seen, inner, mask)
        ctx.scaling = scaling
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        """Gradients of `x`, `a` and `b`."""
        weight, a, b, seen, inner, mask = ctx.saved_tensors
        shape = (*outputs[0].shape[:-1], weight.shape[1])
        grad = outputs[0].flatten(0, -2)  # [tokens, out]
        grad_inner = b.to(grad.dtype).T @ grad.T  # [r, tokens]
        grad_b = (inner @ grad).T * ctx.scaling
        grad_a = (grad_inner @ seen) * ctx.scaling
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if mask is None:
                grad_x.addmm_(grad_inner.T, a.to(grad.dtype), alpha=ctx.scaling)
            else:
                through = grad_inner.T @ a.to(grad.dtype)
                grad_x.addcmul_(through, mask.view_as(through), value=ctx.scaling)
            grad_x = grad_x.view(shape)
        return grad_x, None, grad_a.to(a.dtype), grad_b.to(b.dtype), None, None, None
