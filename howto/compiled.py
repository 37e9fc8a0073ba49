"""Decoder layers compiled by torch.compile, for a GPU: fewer kernels, and a dropout mask that is never stored.

A layer is compiled once for all lengths, and every layer of the model runs the same code. The adapters are computed as
plain operations, which the compiler fuses with their neighbours.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch.nn.functional import linear
from transformers import AttentionInterface

from howto.lean import is_plain
from howto.packing import NAME, is_flash, packed_attention

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class HashedDropout:
    """Dropout whose mask is a hash of the seed, the input and the element.

    The mask is computed where it is used, in the forward pass and again in the backward pass. Adapters that read the
    same tensor (query, key and value; gate and up) share a mask.
    """

    def __init__(self, rate: float, inputs: int, device: torch.device) -> None:
        """`inputs` is the number of tensors that have a mask of their own."""
        self.rate = rate
        # Tensors of their own: code compiled for a view is good for a view at the same offset alone.
        self.keys = [torch.zeros(2, dtype=torch.int32, device=device) for _ in range(inputs)]

    @property
    def seed(self) -> int:
        """What the masks are drawn from; setting it draws new ones."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = seed
        words = torch.from_numpy(np.random.SFC64(seed).random_raw(len(self.keys)).view(np.int32).reshape(-1, 2))
        device = self.keys[0].device
        words = words.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else words
        torch._foreach_copy_(self.keys, list(words))


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


def compile_layers(model: PeftModel, rate: float, sample: dict[str, Any]) -> HashedDropout:
    """Compile the decoder layers of a model with LoRA adapters.

    `sample` are inputs of the model's decoder, with which it is found out which adapters read the same tensor.

    Returns:
        The source of the adapters' dropout. Set its seed before each forward pass.

    Raises:
        RuntimeError: there is no adapter that can be computed so.
    """
    base: PreTrainedModel = model.get_base_model()
    groups, device = _adapters_by_input(base, sample), next(model.parameters()).device
    if not groups:
        raise RuntimeError("no adapter is a plain one")
    dropout = HashedDropout(rate, len(groups), device)
    for key, adapters in zip(dropout.keys, groups, strict=True):
        for adapter in adapters:
            adapter.dropout_key, adapter.dropout_rate = key, rate
            adapter.forward = MethodType(_adapted_linear, adapter)
    if not is_flash(device, base.dtype):  # attention that looks at the lengths of rows cannot be traced
        AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))  # type: ignore[no-untyped-call]
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.specialize_float = True  # rates and scales are constants
    for layer in base.get_decoder().layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    return dropout


def uncompile_layers(model: PeftModel) -> None:
    """Undo `compile_layers`."""
    AttentionInterface.register(NAME, packed_attention)
    for module in model.modules():
        if "forward" in vars(module):
            del module.forward


def _adapters_by_input(base: PreTrainedModel, sample: dict[str, Any]) -> list[list[Any]]:
    """Return the adapters in the order in which they are called, those with the same input together."""
    groups: list[list[Any]] = []
    last: list[torch.Tensor] = []

    def note(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        if not last or last[0] is not args[0]:
            groups.append([])
            last[:] = [args[0]]
        groups[-1].append(module)

    hooks = [
        module.register_forward_pre_hook(note)
        for module in base.modules()
        if isinstance(module, LoraLinear) and is_plain(module)
    ]
    with torch.no_grad():
        base.get_decoder()(**sample, use_cache=False)
    for hook in hooks:
        hook.remove()
    return groups


def _adapted_linear(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Return x W' + s dropout(x) A' B'; the scale of dropout is part of s.

    The scale is put on the thin product, and the sum is left to the compiler, which adds what comes next to it.
    """
    a, b = (part["default"].weight.to(x.dtype) for part in (self.lora_A, self.lora_B))
    flat, scale = x.flatten(0, -2), self.scaling["default"]
    seen = flat
    if self.training and self.dropout_rate:
        seen = torch.where(kept(flat, self.dropout_key, self.dropout_rate), flat, 0.0)
        scale /= 1 - self.dropout_rate
    y = linear(flat, self.base_layer.weight) + linear(linear(seen, a) * scale, b)
    return y.view(*x.shape[:-1], -1)
