"""Attention in a pack is that of each row by itself, or is refused."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from howto.core.errors import UserError
from howto.modeling.packed_attention import packed_attention

ENDS = [0, 3, 4, 11]


def tensor(heads: int) -> torch.Tensor:
    """Return [1, heads, tokens, head size]."""
    return torch.randn(1, heads, ENDS[-1], 8, generator=torch.Generator().manual_seed(heads), dtype=torch.float64)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: list[int], **more: Any) -> torch.Tensor:
    row_ends = torch.tensor(ends, dtype=torch.int32)
    more = {"longest_row": 9, "scaling": 0.3, **more}
    return packed_attention(torch.nn.Identity(), query, key, value, None, row_ends=row_ends, **more)[0]


@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("ends", [ENDS, [2, 3, 4, 11]], ids=["rows", "shared prefix"])
def test_outputs_and_gradients_are_those_of_rows_by_themselves(heads: int, ends: list[int]) -> None:
    query, key, value = (part.requires_grad_() for part in (tensor(4), tensor(heads) + 1, tensor(heads) - 1))
    attended = attend(query, key, value, ends)
    assert attended.shape == (1, 11, 4, 8)
    prefix = list(range(ends[0]))
    outputs: list[torch.Tensor] = []
    for start, end in pairwise(ends):
        places = [*prefix, *range(start, end)]
        q, k, v = (part[:, :, places] for part in (query, key, value))
        row = scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
        outputs.append(row if not outputs else row[:, :, len(prefix) :])  # the prefix's outputs, once
    expected = torch.cat(outputs, dim=2).transpose(1, 2)
    torch.testing.assert_close(attended, expected)
    upstream = torch.randn(attended.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found, wanted = (torch.autograd.grad(one, (query, key, value), upstream) for one in (attended, expected))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("kind", "reason"), [({"softcap": 30.0}, "caps its scores"), ({"sliding_window": 6}, "a window of 6")]
)
def test_attention_of_another_kind_is_refused(kind: dict[str, float], reason: str) -> None:
    with pytest.raises(UserError, match=f"train.packing: .*{reason}.* Set it to false"):
        attend(tensor(2), tensor(2), tensor(2), ENDS, longest_row=7, **kind)
    attend(tensor(2), tensor(2), tensor(2), ENDS, longest_row=7, sliding_window=7)  # no row is longer
