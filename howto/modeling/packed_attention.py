"""Attention over packed sequences: each row attends to itself alone.

A causal mask alone would let a row attend to the rows before it, and a mask [length, length] that forbids it costs the
square of the pack's length. So each row is computed by itself: on a GPU in one call of FlashAttention for rows of
various lengths (Dao 2023, arXiv:2307.08691), elsewhere row by row.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION_NAME = "packed_rows"  # in transformers' registry

# FlashAttention supports fewer key heads than query heads; torch from 2.12 on has an argument for it.
GQA_ARGUMENT: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def uses_flash_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether `packed_attention` uses FlashAttention."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def use_packed_attention(model: PreTrainedModel) -> None:
    """Let the model's layers use `packed_attention`; its inputs are then those of a packed `Batch`.

    Raise ValueError if the architecture's attention cannot be chosen.
    """
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    model.set_attn_implementation(ATTENTION_NAME)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_ends: Tensor,
    longest_row: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute causal attention within each row of a pack; the signature is that of transformers' attention functions.

    Take `query` [1, heads, length, head size], `key` and `value` with as many heads or fewer (grouped-query attention),
    and `row_ends` and `longest_row` as in `Batch`; FlashAttention supports no shared prefix. A token attends to the
    last `sliding_window` tokens, itself included; scores are capped at +-`softcap`. Return [1, length, heads, head
    size], and no weights. Raise ValueError if FlashAttention should cap scores, or the model's attention takes another
    tensor, such as sinks or a bias.
    """
    if unknown := [name for name in others if name != "position_ids" and isinstance(others[name], Tensor)]:
        raise ValueError(f"attention with {unknown[0]} cannot be packed")
    if sliding_window is not None and sliding_window >= longest_row:
        sliding_window = None
    if uses_flash_attention(query.device, query.dtype):
        if softcap is not None:
            raise ValueError("FlashAttention in torch does not cap scores")
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [length, heads, head size]
        sizes = (row_ends, row_ends, longest_row, longest_row)
        before = (-1 if sliding_window is None else sliding_window - 1, 0)
        flash = varlen_attn(q, k, v, *sizes, scale=scaling, window_size=before, **GQA_ARGUMENT)
        assert isinstance(flash, Tensor)
        return flash[None], None
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    ends = row_ends.tolist()
    shared = ends[0]
    lengths = [shared, *(end - start for start, end in pairwise(ends))]
    # `split`, because the gradient of each slice would be as large as the whole tensor.
    (prefix, *rows) = zip(*(torch.split(whole, lengths, dim=2) for whole in (query, key, value)), strict=True)
    attended: list[Tensor] = []
    for row in rows:
        # Each row attends to the prefix; the prefix's own outputs are taken from the first row.
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(prefix, row, strict=True)) if shared else row
        if softcap is None and q.dtype in (torch.float32, torch.float64) and not dropout:
            outputs = _CausalAttention.apply(q[0], k[0], v[0], scaling, sliding_window)[None]  # type: ignore[no-untyped-call]
        elif softcap is None and sliding_window is None:
            settings: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": k.shape[1] != q.shape[1]}
            outputs = scaled_dot_product_attention(q, k, v, is_causal=True, **settings)
        else:
            weights = _weights(q[0] * scaling, k[0], sliding_window, softcap)
            outputs = (torch.dropout(weights, dropout, train=True) @ v[0]).view(q.shape)
        attended.append(outputs[:, :, shared:] if attended and shared else outputs)
    return torch.cat(attended, dim=2).transpose(1, 2), None


class _CausalAttention(torch.autograd.Function):
    """Causal attention of one row in plain products and a softmax, whose bytes are the same on all CPUs.

    For rows of a few hundred tokens this is as fast as torch's fused kernel for CPUs. The weights, which grow with the
    square of a row's length, are computed again for the backward pass.
    """

    @staticmethod
    def forward(  # noqa: PLR0917
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """Return [heads, length, size] for `query` of that shape; `key` and `value` may have fewer heads."""
        scaled = query * scaling
        ctx.save_for_backward(scaled, key, value)
        ctx.scaling, ctx.window = scaling, window
        return (_weights(scaled, key, window) @ value).view(query.shape)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        scaled, key, value = ctx.saved_tensors
        weights = _weights(scaled, key, ctx.window)
        grad = outputs[0].reshape(len(key), -1, key.shape[-1])
        grad_scores = torch._softmax_backward_data(grad @ value.transpose(1, 2), weights, -1, weights.dtype)
        grad_query = (grad_scores @ key).view(scaled.shape)
        grad_key = grad_scores.transpose(1, 2) @ scaled.reshape(grad.shape)
        return grad_query * ctx.scaling, grad_key, weights.transpose(1, 2) @ grad, None, None


def _weights(scaled: Tensor, key: Tensor, window: int | None, softcap: float | None = None) -> Tensor:
    """Return the weights [key heads, queries of these heads, length] of scaled queries [heads, length, size].

    Heads that share keys are computed as more queries of one head.
    """
    heads, length, size = scaled.shape
    scores = scaled.reshape(len(key), -1, size) @ key.transpose(1, 2)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    future = scores.new_full((length, length), -torch.inf).triu_(1)
    if window is not None:
        future += scores.new_full((length, length), -torch.inf).tril_(-window)
    scores.view(heads, length, length).add_(future)
    return torch.softmax(scores, dim=-1)
