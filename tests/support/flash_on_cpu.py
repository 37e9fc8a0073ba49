"""FlashAttention's operator computed on a CPU, so that the code that a GPU runs is traced and compiled without one."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen

import howto.modeling.packed_attention
import howto.training.compiled_layers
import howto.training.forward
from howto.modeling.collate import TILE, Batch, Example, pack


@varlen._varlen_attn.register_kernel("cpu")
def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    _key_starts: torch.Tensor | None,
    _longest: int,
    _longest_key: int,
    is_causal: bool = False,
    scale: float | None = None,
    *_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    assert is_causal
    out, normalizers = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    for rows in _rows(starts):
        weights, scores, v = _weights(query[rows], key[rows], value[rows], scale)
        out[rows], normalizers[:, rows] = (weights @ v).transpose(0, 1).to(out.dtype), scores.logsumexp(-1)
    return out, normalizers, torch.zeros(2, dtype=torch.uint64)


@varlen._varlen_attn_backward.register_kernel("cpu")
def _backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _out: torch.Tensor,
    _normalizers: torch.Tensor,
    starts: torch.Tensor,
    _key_starts: torch.Tensor,
    _longest: int,
    _longest_key: int,
    _is_causal: bool,
    _rng_state: torch.Tensor,
    scale: float | None = None,
    *_: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gradients = [torch.empty_like(part) for part in (query, key, value)]
    for rows in _rows(starts):
        weights, _scores, v = _weights(query[rows], key[rows], value[rows], scale)
        q, k, upstream = [part[rows].to(v.dtype).transpose(0, 1) for part in (query, key, grad)]
        of_weights = upstream @ v.transpose(1, 2)
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * _scaling(query, scale)
        shape = (key.shape[1], query.shape[1] // key.shape[1], -1, key.shape[2])  # heads of keys, queries of each
        of_key = (of_scores.transpose(1, 2) @ q).view(shape).sum(1)
        of_value = (weights.transpose(1, 2) @ upstream).view(shape).sum(1)
        of_query = of_scores @ k.repeat_interleave(shape[1], dim=0)
        for gradient, part in zip(gradients, (of_query, of_key, of_value), strict=True):
            gradient[rows] = part.transpose(0, 1).to(gradient.dtype)
    return gradients[0], gradients[1], gradients[2]


def _rows(starts: torch.Tensor) -> list[slice]:
    return [slice(start, end) for start, end in pairwise(starts.tolist()) if end > start]


def _scaling(query: torch.Tensor, scale: float | None) -> float:
    return float(query.shape[-1] ** -0.5) if scale is None else scale


def _weights(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weights and the scores [heads, tokens, tokens] of a row, and values [heads, tokens, head size]."""
    wide = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (part.to(wide).transpose(0, 1) for part in (query, key, value))
    k, v = (part.repeat_interleave(len(q) // len(part), dim=0) for part in (k, v))
    scores = (q @ k.transpose(1, 2)) * _scaling(query, scale)
    scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1), scores, v


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training pack rows, and attend to them, as it does on a GPU."""
    for module in (howto.modeling.packed_attention, howto.training.compiled_layers):
        monkeypatch.setattr(module, "is_flash", lambda *_: True)

    def batches(examples: list[Example], size: int, _pad: int, device: torch.device, *, packing: bool) -> list[Batch]:
        assert packing
        ordered = sorted(examples, key=len)
        parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        return [pack(part, device, multiple=TILE) for part in parts]

    monkeypatch.setattr(howto.training.forward, "micro_batches", batches)
