"""Decoder layers compiled by torch.compile, for a GPU: few kernels, and a dropout mask that is never stored.

A layer is compiled once for all lengths, and every layer of the model runs the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx.experimental import _config as symbolic
from transformers import AttentionInterface

from howto.modeling.grouped_lora import Groups
from howto.modeling.packed_attention import NAME, is_flash, packed_attention

if TYPE_CHECKING:
    from peft import PeftModel


class CompiledLayers:
    """Decoder layers with LoRA adapters, in compiled code until `undo`."""

    def __init__(self, model: PeftModel, rate: float, sample: dict[str, Any]) -> None:
        """`sample` are inputs of the model's decoder; `rate` is that of the adapters' dropout.

        Raises:
            RuntimeError: there is no adapter that can be computed so.
        """
        base = model.get_base_model()
        decoder = base.get_decoder()
        self._groups = Groups(decoder, sample, rate)
        if not is_flash(next(model.parameters()).device, base.dtype):  # it looks at lengths, so it cannot be traced
            AttentionInterface.register(NAME, torch.compiler.disable(packed_attention))  # type: ignore[no-untyped-call]
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.specialize_float = True  # rates and scales are constants
        symbolic.use_duck_shape = False  # a length that happens to be the hidden size is compiled like any other
        self._forwards = [(layer, layer.forward) for layer in decoder.layers]
        for layer, forward in self._forwards:
            layer.forward = _compiled_with_gradients(forward)
        self._hook = decoder.register_forward_pre_hook(lambda *_: self._groups.refresh())

    @property
    def seed(self) -> int:
        """What the masks of dropout are drawn from; setting it draws new ones. Set it before each forward pass.

        A mask is a hash of two words that are drawn from the seed for each input, and of the element. It is computed
        where it is used, in the forward pass and again in the backward pass.
        """
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = seed
        draw_keys(self._groups.keys, seed)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Let the layers compute the same without compiled code."""
        torch.compiler.set_stance("force_eager")
        try:
            yield
        finally:
            torch.compiler.set_stance("default")

    def undo(self) -> None:
        """Let the model compute as before."""
        self._hook.remove()
        AttentionInterface.register(NAME, packed_attention)
        for layer, forward in self._forwards:
            layer.forward = forward
        self._groups.undo()


def _compiled_with_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a layer's forward method, compiled for passes with gradients; others are short, and stay as they are.

    Without gradients, torch 2.13 compiled layers whose second autograd.Function got its arguments shifted by one.
    """
    compiled = torch.compile(forward, dynamic=True)

    def either(*inputs: Any, **more: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else forward)(*inputs, **more)

    return either


def draw_keys(keys: list[torch.Tensor], seed: int) -> None:
    """Fill `keys`, int32 tensors of two numbers each, from a seed."""
    words = torch.from_numpy(np.random.SFC64(seed).random_raw(len(keys)).view(np.int32).reshape(-1, 2))
    device = keys[0].device
    words = words.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else words
    torch._foreach_copy_(keys, list(words))
