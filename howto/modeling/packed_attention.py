"""Attention over rows that stand one behind the other: each row sees itself alone.

A causal mask would let a row look into the rows before it. A mask [length, length] that forbids it costs the square of
the pack's length, so each row is attended to by itself: on a GPU in one call of FlashAttention for rows of various
lengths (Dao 2023, arXiv:2307.08691), elsewhere row by row.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from howto.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "packed_rows"


# FlashAttention takes fewer heads of keys than of queries; torch from 2.12 on wants to be told so.
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def is_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether packed rows are attended to by FlashAttention."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def attend_row_by_row(model: PreTrainedModel) -> None:
    """Let the model's layers attend as `packed_attention` does; its inputs are then those of a packed `Batch`.

    Raises:
        ValueError: the architecture does not let its attention be chosen.
    """
    AttentionInterface.register(NAME, packed_attention)
    model.set_attn_implementation(NAME)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_ends: torch.Tensor,
    longest_row: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row of a pack, in the form of transformers' attention functions.

    Args:
        query: [1, heads, length, head size]; `key` and `value` may have fewer heads (grouped-query attention).
        row_ends: [rows + 1], int32: row i is at row_ends[i] to row_ends[i + 1], behind the row_ends[0] tokens that
            all rows begin with (on a GPU 0).
        longest_row: tokens.

    Returns:
        [1, length, heads, head size], and no weights.

    Raises:
        UserError: the model's attention is of a kind that is not computed here.
    """
    if softcap is not None or (sliding_window is not None and longest_row > sliding_window):
        what = "caps its scores" if softcap is not None else f"reaches {sliding_window} tokens back"
        raise UserError(
            f"params.yaml: train.packing: this model's attention {what}, and in packed rows (the longest has "
            f"{longest_row} tokens) it does not; set it to false"
        )
    if is_flash(query.device, query.dtype):
        return _flash(query, key, value, row_ends, longest_row, scaling), None
    grouped = key.shape[1] != query.shape[1]
    ends = row_ends.tolist()
    shared = ends[0]
    lengths = [shared, *(end - start for start, end in pairwise(ends))]
    # `split`, because the gradient of a slice is as large as the whole, and that of a split is put together once.
    (prefix, *rows) = zip(*(torch.split(whole, lengths, dim=2) for whole in (query, key, value)), strict=True)
    attended: list[torch.Tensor] = []
    for row in rows:
        # Each row attends to the prefix; the prefix's own outputs are taken from the first row.
        q, k, v = (torch.cat(parts, dim=2) for parts in zip(prefix, row, strict=True)) if shared else row
        if q.dtype in (torch.float32, torch.float64) and not dropout:
            outputs = _CausalAttention.apply(q[0], k[0], v[0], scaling)[None]  # type: ignore[no-untyped-call]
        else:
            outputs = scaled_dot_product_attention(
                q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
            )
        attended.append(outputs[:, :, shared:] if attended and shared else outputs)
    return torch.cat(attended, dim=2).transpose(1, 2), None


class _CausalAttention(torch.autograd.Function):
    """Causal attention of one row in plain products, which are portable (see `portable`), and a softmax.

    For rows of a few hundred tokens this is as fast as torch's fused kernel for CPUs. The weights, which grow with the
    square of a row's length, are computed again for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """`query` [heads, length, size]; `key` and `value` may have fewer heads."""
        scaled = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        ctx.save_for_backward(scaled, key, value)
        ctx.scaling = scaling
        weights = _weights(scaled, key)
        return (weights @ value).view(query.shape)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        """Gradients of `query`, `key` and `value`."""
        scaled, key, value = ctx.saved_tensors
        weights = _weights(scaled, key)
        grad = outputs[0].reshape(len(key), -1, key.shape[-1])
        grad_scores = torch._softmax_backward_data(grad @ value.transpose(1, 2), weights, -1, weights.dtype)
        grad_query = (grad_scores @ key).view(scaled.shape)
        grad_key = grad_scores.transpose(1, 2) @ scaled.reshape(grad.shape)
        scale = scaled.shape[-1] ** -0.5 if ctx.scaling is None else ctx.scaling
        return grad_query * scale, grad_key, weights.transpose(1, 2) @ grad, None


def _weights(scaled: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return the weights [heads of keys, queries of these heads, length] of scaled queries [heads, length, size].

    Heads that share keys are computed as more queries of one head.
    """
    heads, length, size = scaled.shape
    scores = scaled.reshape(len(key), -1, size) @ key.transpose(1, 2)
    future = scores.new_full((length, length), -torch.inf).triu_(1)
    scores.view(heads, length, length).add_(future)
    return torch.softmax(scores, dim=-1)


def _flash(  # noqa: PLR0917
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: torch.Tensor,
    longest: int,
    scaling: float | None,
) -> torch.Tensor:
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [length, heads, head size]
    causal = (-1, 0)
    attended = varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling, window_size=causal, **GROUPED)
    assert isinstance(attended, torch.Tensor)
    return attended[None]
