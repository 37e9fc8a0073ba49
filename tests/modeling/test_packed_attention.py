"""Attention in a pack is that of each row by itself, or is refused."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from howto.modeling.packed_attention import packed_attention
from tests.support.flash_on_cpu import as_on_a_gpu

ENDS = [0, 3, 4, 11]


def tensor(heads: int) -> torch.Tensor:
    """Return [1, heads, tokens, head size]."""
    return torch.randn(1, heads, ENDS[-1], 8, generator=torch.Generator().manual_seed(heads), dtype=torch.float64)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: list[int], **more: Any) -> torch.Tensor:
    row_ends = torch.tensor(ends, dtype=torch.int32)
    more = {"longest_row": 9, "scaling": 0.3, **more}
    return packed_attention(torch.nn.Identity(), query, key, value, None, row_ends=row_ends, **more)[0]


KINDS = [{}, {"sliding_window": 3}, {"sliding_window": 9}, {"softcap": 0.5}, {"sliding_window": 3, "softcap": 0.5}]


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kind: Any) -> torch.Tensor:
    """Attend with all scores at once, masked by a loop."""
    key, value = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (key, value))
    scores = query @ key.transpose(2, 3) * 0.3
    if softcap := kind.get("softcap"):
        scores = softcap * torch.tanh(scores / softcap)
    window, length = kind.get("sliding_window", query.shape[2]), query.shape[2]
    seen = torch.tensor([[0 <= at - other < window for other in range(length)] for at in range(length)])
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("heads", [4, 2, 1])
@pytest.mark.parametrize("ends", [ENDS, [2, 3, 4, 11]], ids=["rows", "shared prefix"])
def test_outputs_and_gradients_are_those_of_rows_by_themselves(
    heads: int, ends: list[int], kind: dict[str, Any]
) -> None:
    query, key, value = (part.requires_grad_() for part in (tensor(4), tensor(heads) + 1, tensor(heads) - 1))
    attended = attend(query, key, value, ends, **kind)
    assert attended.shape == (1, 11, 4, 8)
    prefix = list(range(ends[0]))
    outputs: list[torch.Tensor] = []
    for start, end in pairwise(ends):
        places = [*prefix, *range(start, end)]
        q, k, v = (part[:, :, places] for part in (query, key, value))
        row = plain(q, k, v, **kind)
        outputs.append(row if not outputs else row[:, :, len(prefix) :])  # the prefix's outputs, once
    expected = torch.cat(outputs, dim=2).transpose(1, 2)
    torch.testing.assert_close(attended, expected)
    upstream = torch.randn(attended.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found, wanted = (torch.autograd.grad(one, (query, key, value), upstream) for one in (attended, expected))
    torch.testing.assert_close(found, wanted)


def test_low_precision_and_dropout_keep_the_window() -> None:
    query, key, value = (tensor(2).bfloat16() for _ in range(3))
    found = attend(query, key, value, [0, 11], longest_row=11, sliding_window=3).transpose(1, 2)
    torch.testing.assert_close(found, plain(query, key, value, sliding_window=3), rtol=0.02, atol=0.02)
    value = torch.zeros_like(value)
    value[:, :, 0] = 1  # only the first token has a value, and only the first three see it
    found = attend(query, key, value, [0, 11], longest_row=11, sliding_window=3, dropout=0.01)[0, :, 0, 0]
    assert bool((found[3:] == 0).all()) and bool(found[:3].any())


def test_flash_attention_gets_the_same_window(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = (part.requires_grad_() for part in (tensor(4), tensor(2) + 1, tensor(2) - 1))
    expected = attend(query, key, value, ENDS, sliding_window=3)
    as_on_a_gpu(monkeypatch)
    found = attend(query, key, value, ENDS, sliding_window=3)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(one.square().sum(), (query, key, value)) for one in (found, expected))
    torch.testing.assert_close(*(list(one) for one in gradients), rtol=1e-5, atol=1e-5)  # float32 in the stand-in
    with pytest.raises(ValueError, match="does not cap"):
        attend(query, key, value, ENDS, softcap=1.0)


def test_attention_that_takes_another_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="s_aux cannot be packed"):
        attend(tensor(2), tensor(2), tensor(2), ENDS, s_aux=torch.zeros(2))
    attend(tensor(2), tensor(2), tensor(2), ENDS, position_ids=torch.zeros(1, 11), s_aux=None)
