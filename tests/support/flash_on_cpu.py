"""FlashAttention's operator for a CPU, so that the code that a GPU runs is traced and compiled without one."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

import howto.inference.kv_cache
import howto.modeling.packed_attention
import howto.training.compiled_layers
from howto.modeling.collate import Batch, Example, pack
from howto.training.forward import TILE_TOKENS, Engine


@varlen._varlen_attn.register_kernel("cpu")
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ends: Tensor,
    _key_ends: Tensor | None,
    _longest: int,
    _longest_key: int,
    is_causal: bool = False,
    scale: float | None = None,
    window: list[int] | None = None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    out = torch.empty_like(query)
    for row in _rows(ends):
        q, k, v = (part[row].transpose(0, 1)[None] for part in (query, key, value))
        seen = _seen(q.shape[2], is_causal, window)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
        out[row] = attended[0].transpose(0, 1)
    normalizers = query.new_empty(query.shape[1], len(query), dtype=torch.float32)  # not used here
    return out, normalizers, torch.zeros(2, dtype=torch.uint64)


@varlen._varlen_attn_backward.register_kernel("cpu")
def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _out: Tensor,
    _normalizers: Tensor,
    ends: Tensor,
    _key_ends: Tensor,
    _longest: int,
    _longest_key: int,
    is_causal: bool,
    _random_state: Tensor,
    scale: float | None = None,
    window: list[int] | None = None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = [torch.empty_like(part) for part in (query, key, value)]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    heads, groups = key.shape[1], query.shape[1] // key.shape[1]
    for row in _rows(ends):
        q, k, v, upstream = (part[row].float().transpose(0, 1) for part in (query, key, value, grad))
        k, v = (part.repeat_interleave(groups, dim=0) for part in (k, v))
        scores = (q @ k.transpose(1, 2)) * scale
        weights = scores.masked_fill_(~_seen(scores.shape[-1], is_causal, window), -torch.inf).softmax(-1)
        grad_weights = upstream @ v.transpose(1, 2)
        grad_scores = weights * (grad_weights - (grad_weights * weights).sum(-1, keepdim=True)) * scale
        for_keys = (grad_scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ upstream)
        parts = (grad_scores @ k, *(part.view(heads, groups, *part.shape[1:]).sum(1) for part in for_keys))
        for gradient, part in zip(gradients, parts, strict=True):
            gradient[row] = part.transpose(0, 1).to(gradient.dtype)
    return gradients[0], gradients[1], gradients[2]


def _seen(length: int, is_causal: bool, window: list[int] | None) -> Tensor:
    """Return which tokens a token sees: in FlashAttention, `window` is how many on its left and right; -1 is all."""
    left, right = (bound if bound >= 0 else length for bound in window or (-1, -1))
    behind = torch.arange(length)[:, None] - torch.arange(length)
    return (behind <= left) & (-behind <= (0 if is_causal else right))


def _rows(ends: Tensor) -> list[slice]:
    return [slice(start, end) for start, end in pairwise(ends.tolist()) if end > start]


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training and the decoder pack rows, and attend to them, as they do on a GPU."""
    for module in (howto.modeling.packed_attention, howto.training.compiled_layers):
        monkeypatch.setattr(module, "uses_flash_attention", lambda *_: True)

    def batches(self: Engine, rows: list[Example]) -> Iterator[Batch]:
        ordered = sorted(rows, key=len)
        for start in range(0, len(rows), self._micro_batch_size):
            yield pack(ordered[start : start + self._micro_batch_size], self.device, multiple=TILE_TOKENS)

    monkeypatch.setattr(Engine, "batches", batches)
    monkeypatch.setattr(howto.inference.kv_cache, "pack", lambda rows, device, **_: pack(rows, device))
