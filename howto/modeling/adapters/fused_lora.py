"""LoRA layers and RMSNorms of a Llama-like model, computed in fewer steps than PEFT and transformers take.

On a CPU half of a LoRA training step would go into the adapter's dropout, into copies, and into products whose operands
are not laid out along memory. The results are the same but for rounding, and dropout has the same distribution.
"""

import weakref
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

# Largest relative error between hidden states computed in two ways. An attention mask that leaks gives 0.5.
HIDDEN_STATE_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2}
RANDOM_BITS = 16  # for each element of a mask


class LoraDropout:
    """Dropout on the adapters' inputs. Set `seed` before each forward pass.

    A mask is a function of the seed and the layer's number alone. So it is the same when a layer is computed again
    (activation checkpointing) and in a resumed run.
    """

    def __init__(self, rate: float) -> None:
        self.rate, self.seed = rate, 0
        # The last input, its version and seed; its mask, and the input times the mask.
        self._last: tuple[weakref.ref[Tensor], tuple[int, int], tuple[Tensor, Tensor]] | None = None

    def apply(self, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Return the mask of an adapter's input, and the input times the mask.

        Layers that read the same tensor (query, key and value; gate and up) share both, with the first one's number.
        """
        state = x._version, self.seed
        if self._last is None or self._last[0]() is not x or self._last[1] != state:
            mask = self.mask(x, layer)
            self._last = weakref.ref(x), state, (mask, x.detach() * mask)
        return self._last[2]

    def mask(self, like: Tensor, layer: int) -> Tensor:
        """Return 1 / (1 - rate) for elements that are kept and 0 for others; the shape and dtype of `like`."""
        scale = 1 / (1 - self.rate)
        if not like.is_cpu:
            key = torch.from_numpy(np.random.SFC64([self.seed, layer]).random_raw(1).view(np.int32)).to(like.device)
            return keep_mask(like, key, self.rate).to(like.dtype).mul_(scale)
        # torch draws one number at a time on a CPU; SFC64 draws four in a tenth of the time.
        numbers = np.random.SFC64([self.seed, layer]).random_raw(-(-like.numel() * RANDOM_BITS // 64)).view(np.int16)
        limit = round(self.rate * 2**RANDOM_BITS) - 2 ** (RANDOM_BITS - 1)  # as a signed number
        mask = torch.from_numpy(np.greater_equal(numbers[: like.numel()], limit).astype(np.float32))
        return mask.mul_(scale).to(like.dtype).view(like.shape)


def keep_mask(x: Tensor, key: Tensor, rate: float) -> Tensor:
    """Return which elements of `x` dropout keeps: a bool tensor of its shape, True with probability 1 - `rate`.

    `key` is an int32 tensor of two random words. The hash is the finalizer of MurmurHash3 (Appleby 2011), keyed twice
    so that no mask is a permutation of another; 32-bit products wrap.
    """
    index = torch.arange(x.numel(), dtype=torch.int32, device=x.device)
    # The key comes first: the compiler would compute an index times a constant itself, without wrapping.
    mixed = (index ^ key[0]) * -1640531527  # 2**32 divided by the golden ratio
    mixed = (_xor_shift(mixed, 16) ^ key[1]) * -2048144789
    mixed = _xor_shift(mixed, 13) * -1028477387
    return (mixed >= round(rate * 2**32) - 2**31).view(x.shape)


def _xor_shift(x: Tensor, bits: int) -> Tensor:  # shifts zeros in
    return x ^ ((x >> bits) & ((1 << (32 - bits)) - 1))


def use_fused_lora(model: nn.Module, rate: float) -> LoraDropout:
    """Let the plain LoRA layers of a PEFT model compute as `_FusedLora` does; return their dropout in training."""
    dropout = LoraDropout(rate)
    for number, module in enumerate(model.modules()):
        if isinstance(module, LoraLinear) and is_plain_lora(module):
            module.forward = partial(_fused_forward, module, dropout, number)
    return dropout


def is_plain_lora(module: LoraLinear) -> bool:
    """Return whether this is one active LoRA adapter (no DoRA or the like) on a linear layer without bias."""
    return (
        list(module.lora_A) == ["default"]
        and not module.lora_variant
        and type(module.base_layer) is nn.Linear
        and module.base_layer.bias is None
        and module.lora_B["default"].bias is None
        and not module.merged
        and not module.disable_adapters
    )


def _fused_forward(module: Any, dropout: LoraDropout, number: int, x: Tensor) -> Tensor:
    mask, masked = dropout.apply(x, number) if module.training and dropout.rate else (None, x)
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    return _FusedLora.apply(x, module.base_layer.weight, a, b, module.scaling["default"], mask, masked.detach())  # type: ignore[no-any-return, no-untyped-call]


class _FusedLora(torch.autograd.Function):
    """y = x W' + s (x * mask) A' B', with W frozen. The thin products are laid out so that they run along memory."""

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, mask: Tensor | None, masked: Tensor
    ) -> Tensor:
        """Compute y from `x` [..., in], `weight` [out, in], `a` [r, in], `b` [out, r]; `masked` is x times `mask`."""
        masked = masked.flatten(0, -2)  # [tokens, in]
        inner = a.to(x.dtype) @ masked.T  # [r, tokens]
        y = x.flatten(0, -2) @ weight.T
        y.addmm_(inner.T, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(weight, a, b, masked, inner, mask)
        ctx.scale = scale
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        weight, a, b, masked, inner, mask = ctx.saved_tensors
        grad = outputs[0].flatten(0, -2)  # [tokens, out]
        grad_inner = b.to(grad.dtype).T @ grad.T  # [r, tokens]
        grad_b = (inner @ grad).T * ctx.scale
        grad_a = (grad_inner @ masked) * ctx.scale
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            if mask is None:
                grad_x.addmm_(grad_inner.T, a.to(grad.dtype), alpha=ctx.scale)
            else:
                through_a = grad_inner.T @ a.to(grad.dtype)
                grad_x.addcmul_(through_a, mask.view_as(through_a), value=ctx.scale)
            grad_x = grad_x.view(*outputs[0].shape[:-1], -1)
        return grad_x, None, grad_a.to(a.dtype), grad_b.to(b.dtype), None, None, None


def use_fused_norms(model: nn.Module) -> int:
    """Compute a model's RMSNorms (Zhang and Sennrich 2019, arXiv:1910.07467) in one kernel of a GPU, not eight.

    The kernel rounds once, the model's own arithmetic twice. A norm of another kind, such as one that adds 1 to its
    weight, stays as it is. Return the number of norms that were replaced.
    """
    replaced = 0
    for module in model.modules():
        epsilon, weight = getattr(module, "variance_epsilon", None), getattr(module, "weight", None)
        if epsilon is None or weight is None or weight.ndim != 1:
            continue
        probe = torch.linspace(-2, 3, len(weight), device=weight.device).to(weight.dtype)
        with torch.no_grad():
            error = relative_error(_fused_norm(module, probe), module(probe))
        if error <= HIDDEN_STATE_TOLERANCE[weight.dtype]:
            module.forward = MethodType(_fused_norm, module)
            replaced += 1
    return replaced


def _fused_norm(self: Any, x: Tensor) -> Tensor:
    return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.variance_epsilon)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, relative to the norm of `expected`; NaN if either has a NaN."""
    difference = found.double() - expected.double()
    return float(difference.norm() / expected.double().norm())
