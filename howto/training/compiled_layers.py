"""Compile decoder layers with torch.compile, for a GPU: few kernels, and a dropout mask that is never stored.

A layer is compiled once for all lengths, and all layers of the model run the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx.experimental import _config as symbolic
from transformers import AttentionInterface

from howto.modeling.adapters.grouped_lora import GroupedLora
from howto.modeling.async_copy import async_tensor
from howto.modeling.packed_attention import ATTENTION_NAME, packed_attention, uses_flash_attention

if TYPE_CHECKING:
    from peft import PeftModel


class CompiledLayers:
    """Decoder layers with LoRA adapters, in compiled code until `undo`."""

    def __init__(self, model: PeftModel, rate: float, sample: dict[str, Any]) -> None:
        """`sample` are inputs of the model's decoder; `rate` is that of the adapters' dropout.

        Raise RuntimeError if the adapters cannot be grouped.
        """
        base = model.get_base_model()
        decoder = base.get_decoder()
        self._lora = GroupedLora(decoder, sample, rate)
        if not uses_flash_attention(next(model.parameters()).device, base.dtype):  # else it reads lengths on the host
            untraced = torch.compiler.disable(packed_attention)  # type: ignore[no-untyped-call]
            AttentionInterface.register(ATTENTION_NAME, untraced)
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.specialize_float = True  # rates and scales are constants
        symbolic.use_duck_shape = False  # a length that equals the hidden size is compiled like any other
        self._forwards = [(layer, layer.forward) for layer in decoder.layers]
        for layer, forward in self._forwards:
            layer.forward = _compiled_with_gradients(forward)
        self._hook = decoder.register_forward_pre_hook(lambda *_: self._lora.refresh())

    def draw_masks(self, seed: int) -> None:
        """Draw new dropout masks; call it before each forward pass.

        A mask is a hash of two words that are drawn for each input, and of the element. It is computed where it is
        used, in the forward pass and again in the backward pass.
        """
        draw_dropout_keys(self._lora.dropout_keys, seed)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Compute the same without compiled code."""
        torch.compiler.set_stance("force_eager")
        try:
            yield
        finally:
            torch.compiler.set_stance("default")

    def undo(self) -> None:
        """Let the model compute as before."""
        self._hook.remove()
        AttentionInterface.register(ATTENTION_NAME, packed_attention)
        for layer, forward in self._forwards:
            layer.forward = forward
        self._lora.undo()


def _compiled_with_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a layer's forward method, compiled for passes with gradients only.

    Without gradients, torch 2.13 compiled layers whose second autograd.Function got its arguments shifted by one.
    """
    compiled = torch.compile(forward, dynamic=True)

    def dispatch(*inputs: Any, **more: Any) -> Any:
        return (compiled if torch.is_grad_enabled() else forward)(*inputs, **more)

    return dispatch


def draw_dropout_keys(keys: list[torch.Tensor], seed: int) -> None:
    """Fill `keys`, int32 tensors of two numbers each, from a seed."""
    words = np.random.SFC64(seed).random_raw(len(keys)).view(np.int32).reshape(-1, 2)
    torch._foreach_copy_(keys, list(async_tensor(words, keys[0].device, torch.int32)))
