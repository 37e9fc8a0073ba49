"""Attention in a pack is that of each row alone, or is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from howto.core.errors import UserError
from howto.modeling.packed_attention import packed_attention

LENGTHS = (3, 1, 7)
ENDS = torch.tensor([0, 3, 4, 11], dtype=torch.int32)


def pack(heads: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(heads)
    return torch.randn(1, heads, sum(LENGTHS), 8, generator=generator, dtype=dtype)


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_each_row_attends_to_itself_also_with_fewer_heads_for_keys(heads: int) -> None:
    query, key, value = pack(4), pack(heads) + 1, pack(heads) - 1
    attended, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, row_ends=ENDS, longest_row=7, scaling=0.3
    )
    assert attended.shape == (1, 11, 4, 8)
    row = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))
    sees = (row[:, None] == row[None, :]) & torch.ones(11, 11, dtype=torch.bool).tril()
    wanted = scaled_dot_product_attention(query, key, value, attn_mask=sees, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(attended, wanted.transpose(1, 2))


@pytest.mark.parametrize("heads", [4, 2])
def test_a_prefix_that_all_rows_begin_with_is_attended_to_by_each(heads: int) -> None:
    """The outputs, and the gradients, are those of rows that each have the prefix by themselves."""
    shared = 2  # tokens
    query, key, value = (tensor.requires_grad_() for tensor in (pack(4), pack(heads) + 1, pack(heads) - 1))
    ends = [shared, 3, 4, 11]
    attended, _ = packed_attention(
        torch.nn.Identity(), query, key, value, None, row_ends=torch.tensor(ends, dtype=torch.int32), longest_row=9
    )
    rows: list[torch.Tensor] = []
    for start, end in pairwise(ends):
        places = [*range(shared), *range(start, end)]
        q, k, v = (tensor[:, :, places] for tensor in (query, key, value))
        alone = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        rows.append(alone if not rows else alone[:, :, shared:])
    wanted = torch.cat(rows, dim=2).transpose(1, 2)
    torch.testing.assert_close(attended, wanted)
    weights = torch.randn_like(wanted)
    for found, other in zip(
        torch.autograd.grad((attended * weights).sum(), (query, key, value)),
        torch.autograd.grad((wanted * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(found, other)


@pytest.mark.parametrize(
    ("kind", "said"), [({"softcap": 30.0}, "caps its scores"), ({"sliding_window": 6}, "6 tokens back")]
)
def test_attention_of_another_kind_is_refused(kind: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=f"train.packing: .*{said}.* set it to false"):
        packed_attention(torch.nn.Identity(), pack(2), pack(2), pack(2), None, row_ends=ENDS, longest_row=7, **kind)  # type: ignore[arg-type]


def test_a_window_that_no_row_reaches_beyond_is_none() -> None:
    packed_attention(
        torch.nn.Identity(), pack(2), pack(2), pack(2), None, row_ends=ENDS, longest_row=7, sliding_window=7
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlashAttention runs on a GPU alone")
@pytest.mark.parametrize("heads", [4, 2])
def test_flash_attention_gives_what_is_given_row_by_row(heads: int) -> None:
    query, key, value = (pack(n, torch.float32).cuda() for n in (4, heads, heads))
    settings = {"row_ends": ENDS.cuda(), "longest_row": 7, "scaling": 0.3}
    exact, _ = packed_attention(torch.nn.Identity(), query, key, value, None, **settings)  # type: ignore[arg-type]
    query, key, value = (tensor.bfloat16() for tensor in (query, key, value))
    flash, _ = packed_attention(torch.nn.Identity(), query, key, value, None, **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(flash.float(), exact, rtol=3e-2, atol=3e-2)
