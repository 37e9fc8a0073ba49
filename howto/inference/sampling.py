"""How the next token is chosen, row by row: what a row gets depends on its own logits and its own chance alone.

A row's chances are drawn once, from its seed and its key. So an answer that is sampled does not depend on the rows
that share its batch, nor on how many were answered before a run was killed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from howto.inference.config import Infer

TIE = 1e-3  # logits that are as near as this could change places by rounding
EDGE = 1e-5  # and so could a chance that is as near as this to the edge of a token's share


@dataclass(frozen=True)
class Choice:
    """The tokens [rows] that were chosen, and which of them [rows] another rounding might have chosen otherwise."""

    tokens: torch.Tensor
    close: torch.Tensor


class Sampler:
    """Greedy decoding, or sampling by temperature, top-k (Fan et al. 2018) and top-p (Holtzman et al. 2020)."""

    def __init__(self, params: Infer, *, finds_close: bool = True) -> None:
        """Without `finds_close`, no choice is marked as close where decoding is greedy."""
        self._finds_close = finds_close
        self._penalty = params.repetition_penalty
        self.penalises = self._penalty != 1
        self.samples = params.temperature > 0
        self._steps = []
        if self.samples:
            self._steps.append(TemperatureLogitsWarper(params.temperature))
            if params.top_k is not None:
                self._steps.append(TopKLogitsWarper(params.top_k))
            if params.top_p < 1:
                self._steps.append(TopPLogitsWarper(params.top_p))

    def choose(self, logits: torch.Tensor, chances: torch.Tensor | None, seen: torch.Tensor | None) -> Choice:
        """Choose a token for each row.

        Args:
            logits: [rows, vocabulary].
            chances: [rows], in 0..1; without effect where decoding is greedy.
            seen: [rows, vocabulary], which tokens stand in the row by now; only with a repetition penalty
                (Keskar et al. 2019, arXiv:1909.05858).
        """
        if not (self.samples or self.penalises or self._finds_close):
            tokens = logits.argmax(dim=-1)
            return Choice(tokens, torch.zeros_like(tokens, dtype=torch.bool))
        scores = logits.float()
        if self.penalises and seen is not None:
            penalised = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
            scores = torch.where(seen, penalised, scores)
        if not self.samples or chances is None:
            values, tokens = scores.topk(2, dim=-1)
            return Choice(tokens[:, 0], values[:, 0] - values[:, 1] < TIE)
        for step in self._steps:
            scores = step(None, scores)
        ends = torch.softmax(scores, dim=-1, dtype=torch.float64).cumsum(dim=-1)  # of each token's share
        wanted = chances[:, None].to(ends) * ends[:, -1:]
        tokens = torch.searchsorted(ends, wanted, right=True).clamp_(max=ends.shape[1] - 1)
        end = ends.gather(1, tokens)
        start = ends.gather(1, (tokens - 1).clamp_(min=0)) * (tokens > 0)
        close = (end - wanted < EDGE) | ((wanted - start < EDGE) & (tokens > 0))
        return Choice(tokens[:, 0], close[:, 0])


def chances_of(key: str, seed: int, count: int) -> NDArray[np.float64]:
    """`count` numbers in 0..1 for the row of this key: the same for the same key and seed, on every machine."""
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big"))).random(count)
