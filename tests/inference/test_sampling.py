"""The next token is the likeliest one, or a random one with the probabilities that params give."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from howto.inference.config import Infer
from howto.inference.sampling import LOGIT_MARGIN, PROBABILITY_MARGIN, Sampler, uniform_numbers

LOGITS = torch.tensor([2.0, 0.5, 1.5, -1.0, 0.0, 1.0])
SHARES = torch.softmax(LOGITS.double(), dim=0)
DRAWS = 20_000


def decoding_params(**changes: object) -> Infer:
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
    return Infer.model_validate({**values, **changes})


def counts(**changes: object) -> NDArray[np.int64]:
    """How often each token is drawn."""
    uniforms = torch.from_numpy(uniform_numbers("a row", 0, DRAWS))
    tokens, _ = Sampler(decoding_params(**changes)).choose(LOGITS.expand(DRAWS, -1), uniforms, None)
    return np.bincount(tokens.numpy(), minlength=len(LOGITS))


def test_greedy_is_the_likeliest_token_and_two_close_logits_are_a_tie() -> None:
    logits = LOGITS.repeat(3, 1)
    logits[1, 2] = 2.0 - LOGIT_MARGIN / 2
    logits[2, 2] = 2.0 - 2 * LOGIT_MARGIN
    tokens, is_tie = Sampler(decoding_params()).choose(logits, None, None)
    assert tokens.tolist() == [0, 0, 0] and is_tie.tolist() == [False, True, False]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_drawn_with_the_probabilities_of_the_softmax(temperature: float) -> None:
    expected = torch.softmax(LOGITS.double() / temperature, dim=0).numpy() * DRAWS
    assert stats.chisquare(counts(temperature=temperature), expected).pvalue > 0.001


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({"top_k": 1}, [0]), ({"top_k": 2}, [0, 2]), ({"top_p": 0.7}, [0, 2, 5]), ({"top_p": 0.6}, [0, 2])],
)
def test_top_k_and_top_p_keep_the_likeliest_tokens_in_their_proportions(
    settings: dict[str, object], kept: list[int]
) -> None:
    drawn = counts(temperature=1.0, **settings)
    assert np.flatnonzero(drawn).tolist() == kept
    shares = SHARES.numpy()[kept]
    assert len(kept) == 1 or stats.chisquare(drawn[kept], shares / shares.sum() * DRAWS).pvalue > 0.001


def test_a_random_number_at_the_bound_between_two_tokens_is_a_tie() -> None:
    offsets = torch.tensor([-0.1, -PROBABILITY_MARGIN / 2, PROBABILITY_MARGIN / 2, 2 * PROBABILITY_MARGIN]).double()
    uniforms = SHARES[0] + offsets
    tokens, is_tie = Sampler(decoding_params(temperature=1.0)).choose(LOGITS.expand(4, -1), uniforms, None)
    assert tokens.tolist() == [0, 0, 1, 1] and is_tie.tolist() == [False, True, True, False]


def test_a_random_number_of_almost_1_gives_a_possible_token() -> None:
    uniforms = torch.tensor([1 - 2**-53, 0.0], dtype=torch.float64)
    logits = torch.tensor([[0.0, 0.0, -float("inf")]]).expand(2, -1)
    assert Sampler(decoding_params(temperature=1.0)).choose(logits, uniforms, None)[0].tolist() == [1, 0]


def test_random_numbers_depend_on_the_row_and_the_seed_alone() -> None:
    first = uniform_numbers("a", 1, 5)
    assert (uniform_numbers("a", 1, 9)[:5] == first).all()  # however long the answer may get
    assert (uniform_numbers("b", 1, 5) != first).all() and (uniform_numbers("a", 2, 5) != first).all()
    many = np.concatenate([uniform_numbers(str(number), 0, 50) for number in range(200)])
    assert stats.kstest(many, "uniform").pvalue > 0.001
