"""Choosing the next token. A row's choice depends only on its own logits and its own random numbers.

The random numbers of a row come from its id and its seed. So a sampled answer depends neither on the rows that share
its batch, nor on how many rows were answered before a run was killed.
"""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from howto.inference.config import Infer

LOGIT_MARGIN = 1e-3  # two logits this close could change places by rounding
PROBABILITY_MARGIN = 1e-5  # a random number this close to the bound between two tokens could fall on either side


class Sampler:
    """Greedy decoding, or sampling by temperature, top-k (Fan et al. 2018) and top-p (Holtzman et al. 2020)."""

    def __init__(self, decoding: Infer, *, find_ties: bool = True) -> None:
        """Without `find_ties`, greedy choices are never marked as ties, which saves time."""
        self._find_ties = find_ties
        self._penalty = decoding.repetition_penalty
        self.uses_penalty = self._penalty != 1
        self.is_random = decoding.temperature > 0
        self._warpers = []
        if self.is_random:
            self._warpers.append(TemperatureLogitsWarper(decoding.temperature))
            if decoding.top_k is not None:
                self._warpers.append(TopKLogitsWarper(decoding.top_k))
            if decoding.top_p < 1:
                self._warpers.append(TopPLogitsWarper(decoding.top_p))

    def choose(
        self, logits: torch.Tensor, uniforms: torch.Tensor | None, seen: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a token for each row [rows], and whether rounding could have changed it [rows].

        Args:
            logits: [rows, vocabulary].
            uniforms: [rows], random numbers in 0..1; read if decoding is random.
            seen: [rows, vocabulary], whether the row contains the token; read with a repetition penalty
                (Keskar et al. 2019, arXiv:1909.05858).
        """
        if not (self.is_random or self.uses_penalty or self._find_ties):
            tokens = logits.argmax(dim=-1)
            return tokens, torch.zeros_like(tokens, dtype=torch.bool)
        scores = logits.float()
        if self.uses_penalty:
            assert seen is not None
            penalised = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
            scores = torch.where(seen, penalised, scores)
        if not self.is_random:
            values, best = scores.topk(2, dim=-1)
            return best[:, 0], values[:, 0] - values[:, 1] < LOGIT_MARGIN
        assert uniforms is not None
        for warp in self._warpers:
            scores = warp(None, scores)
        upper = torch.softmax(scores, dim=-1, dtype=torch.float64).cumsum(dim=-1)  # a token's interval ends here
        points = uniforms[:, None].to(upper) * upper[:, -1:]
        tokens = torch.searchsorted(upper, points, right=True).clamp_(max=upper.shape[1] - 1)
        end = upper.gather(1, tokens)
        start = upper.gather(1, (tokens - 1).clamp_(min=0)) * (tokens > 0)
        is_tie = (end - points < PROBABILITY_MARGIN) | ((points - start < PROBABILITY_MARGIN) & (tokens > 0))
        return tokens[:, 0], is_tie[:, 0]


def uniform_numbers(key: str, seed: int, count: int) -> NDArray[np.float64]:
    """Return `count` random numbers in 0..1: the same for the same key and seed, on every machine."""
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big"))).random(count)
