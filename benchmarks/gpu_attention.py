"""Sections B and C of `gpu_check`: attention in training and in decoding, by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_setup import Check, Figures, first_line, kernels

if TYPE_CHECKING:
    import torch


def packed_attention(check: Check) -> Figures:
    """B. Packed attention against float32 row by row, forward and backward, and twice for the same bits."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from howto.modeling.packed_attention import packed_attention

    generator = random.Random(0)
    lengths = [generator.randrange(3, 40 if check.tiny else 400) for _ in range(16)]
    ends = torch.tensor([0, *(sum(lengths[: n + 1]) for n in range(16))], dtype=torch.int32, device=check.device)
    found: Figures = {}
    for heads in (4, 32):
        torch.manual_seed(0)
        parts = [
            torch.randn(1, n, sum(lengths), 64, device=check.device, dtype=check.dtype).requires_grad_()
            for n in (32, heads, heads)
        ]
        upstream = torch.randn(1, sum(lengths), 32, 64, device=check.device, dtype=check.dtype)

        def both(inputs: Any = parts, upstream: Any = upstream) -> list[torch.Tensor]:
            q, k, v = inputs
            output, _ = packed_attention(
                torch.nn.Identity(), q, k, v, None, row_ends=ends, longest_row=max(lengths), scaling=0.125
            )
            return [output, *torch.autograd.grad(output, inputs, upstream)]

        exact: list[Any] = [part.detach().float().requires_grad_() for part in parts]
        pieces = []
        for q, k, v in zip(*(part.split(lengths, dim=2) for part in exact), strict=True):
            k, v = (part.repeat_interleave(32 // heads, dim=1) for part in (k, v))  # noqa: PLW2901
            pieces.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125))
        output = torch.cat(pieces, dim=2).transpose(1, 2)
        wanted = [output, *torch.autograd.grad(output, exact, upstream.float())]
        once, twice = both(), both()
        found[f"{heads}_heads_of_keys"] = {
            "relative_errors": [
                round(((one.float() - other).norm() / other.norm()).item(), 6)
                for one, other in zip(once, wanted, strict=True)
            ],
            "same_bits": all(torch.equal(one, other) for one, other in zip(once, twice, strict=True)),
            "milliseconds": check.milliseconds(both),
        }
        if heads == 4:
            found["without repeating keys"] = grouped_varlen(check, parts, ends, max(lengths), upstream, wanted)
    return found


def varlen_attention() -> tuple[Any, dict[str, bool]]:
    """Return torch's attention for rows of various lengths, and its argument for fewer key heads (torch 2.12 on)."""
    from torch.nn.attention import varlen

    attention: Any = varlen.varlen_attn
    return attention, {"enable_gqa": True} if "enable_gqa" in attention.__kwdefaults__ else {}


def grouped_varlen(  # noqa: PLR0917
    check: Check,
    parts: list[torch.Tensor],
    ends: torch.Tensor,
    longest: int,
    upstream: torch.Tensor,
    wanted: list[torch.Tensor],
) -> Figures:
    """FlashAttention on fewer heads of keys than of queries, which torch before 2.12 has no argument for."""
    import torch

    varlen, more = varlen_attention()

    def both() -> list[torch.Tensor]:
        q, k, v = (part[0].transpose(0, 1) for part in parts)
        output = varlen(q, k, v, ends, ends, longest, longest, scale=0.125, window_size=(-1, 0), **more)
        return [output[None], *torch.autograd.grad(output[None], parts, upstream)]

    try:
        errors = [
            ((one.float() - other).norm() / other.norm()).item() for one, other in zip(both(), wanted, strict=True)
        ]
        return {"relative_errors": [round(e, 6) for e in errors], "milliseconds": check.milliseconds(both)}
    except Exception as error:
        return {"failed": first_line(error)}


def decode_attention(check: Check) -> Figures:
    """C. Attention of a decode step in several ways, and the write into the cache."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    rows, reach, heads, groups, size = (8, 32, 2, 2, 16) if check.tiny else (256, 512, 4, 8, 64)
    torch.manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=check.device, dtype=check.dtype)

    query, new = numbers(rows, heads * groups, 1, size), numbers(rows, heads, size)
    keys, values = (numbers(rows, heads, reach, size) for _ in range(2))
    places = torch.randint(1, reach, (rows,), device=check.device)
    visible = torch.arange(reach, device=check.device) <= places[:, None]
    grouped = query.view(rows, heads, groups, size)
    by_place = [part.transpose(1, 2).contiguous().view(rows * reach, heads, size) for part in (keys, values)]
    starts = torch.arange(rows + 1, device=check.device, dtype=torch.int32) * reach
    ones = torch.arange(rows + 1, device=check.device, dtype=torch.int32)
    used = (places + 1).int()
    varlen, more = varlen_attention()
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "enable_gqa": lambda: scaled_dot_product_attention(
            query, keys, values, attn_mask=visible[:, None, None], enable_gqa=True
        ),
        "grouped": lambda: scaled_dot_product_attention(grouped, keys, values, attn_mask=visible[:, None, None]),
        "grouped, products": lambda: (
            torch.softmax(
                ((grouped @ keys.transpose(2, 3)) * size**-0.5).masked_fill(~visible[:, None, None], -torch.inf), -1
            )
            @ values
        ),
        "flash, seqused_k": lambda: varlen(query[:, :, 0], *by_place, ones, starts, 1, reach, seqused_k=used, **more),
        "flash, seqused_k, a query a group": lambda: varlen(
            grouped.transpose(1, 2).reshape(rows * groups, heads, size),
            *by_place,
            ones * groups,
            starts,
            groups,
            reach,
            seqused_k=used,
        ),
    }
    found: Figures = {}
    exact = ways["enable_gqa"]().float().view(rows, -1)
    for name, way in ways.items():
        try:
            output = way().float()
            if name.endswith("a group"):
                output = output.view(rows, groups, heads, size).transpose(1, 2)
            error = ((output.reshape(rows, -1) - exact).norm() / exact.norm()).item()
            found[name] = {"milliseconds": check.milliseconds(way), "error": round(error, 5), "kernels": kernels(way)}
        except Exception as error:
            found[name] = {"failed": first_line(error)}
    numbered = torch.arange(rows, device=check.device)

    def write(*, deterministic: bool) -> None:
        torch.use_deterministic_algorithms(deterministic)
        keys[numbered, :, places] = new
        torch.use_deterministic_algorithms(True)

    for yes in (True, False):
        taken = check.milliseconds(lambda yes=yes: write(deterministic=yes))  # type: ignore[misc]
        found[f"index_put, {'' if yes else 'not '}deterministic"] = taken
    return found
