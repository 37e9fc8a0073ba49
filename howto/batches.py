"""Rows as token ids, and how they are grouped for the optimizer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from howto.prompt import completion_ids, prompt_ids
from howto.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a position that takes no part in the loss


@dataclass(frozen=True)
class Example:
    """A row as token ids: the prompt, and the response with its end-of-sequence token."""

    id: str
    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length. Both tensors are [rows, length].

    There is no attention mask: a causal model's real tokens never look at what stands behind them,
    and the labels of padding are IGNORED by its place, never by its id.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor

    @property
    def response_tokens(self) -> int:
        """How many positions take part in the loss."""
        return int((self.labels != IGNORED).sum())


def encode(tokenizer: PreTrainedTokenizerBase, rows: list[Row], max_length: int) -> tuple[list[Example], list[str]]:
    """Examples of at most `max_length` tokens, and the ids of the rows that are longer."""
    examples, too_long = [], []
    for row in rows:
        example = Example(
            row.id,
            prompt_ids(tokenizer, row.instruction, row.input),
            completion_ids(tokenizer, row.instruction, row.input, row.output),
        )
        if len(example) <= max_length:
            examples.append(example)
        else:
            too_long.append(row.id)
    return examples, too_long


def steps_of_epoch(examples: list[Example], batch_size: int, seed: int, epoch: int) -> Iterator[list[Example]]:
    """Yield the rows of each optimizer step of an epoch: all rows once, in an order drawn from seed and epoch."""
    order = list(examples)
    random.Random(f"order {seed} {epoch}").shuffle(order)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def micro_batches(examples: list[Example], size: int, pad: int) -> Iterator[Batch]:
    """Yield the rows in batches of at most `size`, those of like length together so that little is padded."""
    by_length = sorted(examples, key=len)
    for start in range(0, len(by_length), size):
        yield _collate(by_length[start : start + size], pad)


def _collate(examples: list[Example], pad: int) -> Batch:
    length = max(len(example) for example in examples)
    input_ids = torch.full((len(examples), length), pad)
    labels = torch.full((len(examples), length), IGNORED)
    for row, example in enumerate(examples):
        input_ids[row, : len(example)] = torch.tensor(example.prompt + example.completion)
        labels[row, len(example.prompt) : len(example)] = torch.tensor(example.completion)
    return Batch(input_ids, labels)
