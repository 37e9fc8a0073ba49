"""The next token: the likeliest one, or one by chance, with the chances that params say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import RepetitionPenaltyLogitsProcessor

from howto.inference.config import Infer
from howto.inference.sampling import EDGE, TIE, Sampler, chances_of

LOGITS = torch.tensor([2.0, 0.5, 1.5, -1.0, 0.0, 1.0])


def infer(**more: object) -> Infer:
    values: dict[str, object] = {
        "max_new_tokens": 8,
        "max_prompt_tokens": None,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": None,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": None,
        "stop": [],
        "seeds": [0],
    }
    return Infer.model_validate({**values, **more})


def drawn(count: int = 20_000, **more: object) -> NDArray[np.int64]:
    """How often each token comes, of so many draws."""
    chances = torch.from_numpy(chances_of("a row", 0, count))
    tokens = Sampler(infer(**more)).choose(LOGITS.expand(count, -1), chances, None).tokens
    return np.bincount(tokens.numpy(), minlength=len(LOGITS))


def test_greedy_is_the_likeliest_and_says_where_it_is_close() -> None:
    logits = torch.stack([LOGITS, LOGITS.clone(), LOGITS.clone()])
    logits[1, 2] = 2.0 - TIE / 2
    logits[2, 2] = 2.0 - 2 * TIE
    choice = Sampler(infer()).choose(logits, None, None)
    assert choice.tokens.tolist() == [0, 0, 0] and choice.close.tolist() == [False, True, False]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float) -> None:
    wanted = torch.softmax(LOGITS.double() / temperature, dim=0).numpy() * 20_000
    assert stats.chisquare(drawn(temperature=temperature), wanted).pvalue > 0.001


def test_top_k_and_top_p_leave_the_likeliest_in_their_proportions() -> None:
    shares = torch.softmax(LOGITS.double(), dim=0).numpy()
    for settings, kept in (({"top_k": 2}, [0, 2]), ({"top_p": 0.7}, [0, 2, 5]), ({"top_p": 0.6}, [0, 2])):
        counts = drawn(temperature=1.0, **settings)
        assert np.flatnonzero(counts).tolist() == kept
        wanted = shares[kept] / shares[kept].sum() * 20_000
        assert stats.chisquare(counts[kept], wanted).pvalue > 0.001
    assert np.flatnonzero(drawn(temperature=1.0, top_k=1)).tolist() == [0]


def test_a_chance_at_the_edge_of_a_share_is_close() -> None:
    edge = float(torch.softmax(LOGITS.double(), dim=0)[0])
    chances = torch.tensor([edge / 2, edge - EDGE / 2, edge + EDGE / 2, edge + 2 * EDGE], dtype=torch.float64)
    choice = Sampler(infer(temperature=1.0)).choose(LOGITS.expand(4, -1), chances, None)
    assert choice.tokens.tolist() == [0, 0, 1, 1] and choice.close.tolist() == [False, True, True, False]


def test_a_chance_of_almost_1_is_a_token() -> None:
    chances = torch.tensor([1 - 2**-53, 0.0], dtype=torch.float64)
    logits = torch.tensor([[0.0, 0.0, -float("inf")]]).expand(2, -1)
    assert Sampler(infer(temperature=1.0)).choose(logits, chances, None).tokens.tolist() == [1, 0]


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    seen_ids = torch.tensor([[0, 3]])
    seen = torch.zeros(1, len(LOGITS), dtype=torch.bool).scatter_(1, seen_ids, True)
    wanted = RepetitionPenaltyLogitsProcessor(1.7)(seen_ids, LOGITS[None].clone())
    choice = Sampler(infer(repetition_penalty=1.7)).choose(LOGITS[None], None, seen)
    assert choice.tokens.item() == wanted.argmax().item() == 2  # 2.0 / 1.7 is less than 1.5


def test_chances_are_a_rows_own() -> None:
    first = chances_of("a", 1, 5)
    assert (chances_of("a", 1, 9)[:5] == first).all()  # however long the answer may get
    assert (chances_of("b", 1, 5) != first).all() and (chances_of("a", 2, 5) != first).all()
    assert stats.kstest(np.concatenate([chances_of(str(n), 0, 50) for n in range(200)]), "uniform").pvalue > 0.001
