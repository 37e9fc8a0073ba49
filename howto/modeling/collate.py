"""Rows as token ids, and how they are grouped for the optimizer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from howto.core.schema import Row
from howto.modeling.prompt import completion_ids, fitting_input, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TILE = 128  # tokens; what kernels of matrix products on a GPU compute at once


@dataclass(frozen=True)
class Example:
    """A row as token ids: the prompt, and the response with its end-of-sequence token."""

    id: str
    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Encoded:
    """Examples of at most so many tokens; the ids of those whose context was shortened, and of rows left out."""

    examples: list[Example]
    shortened: list[str]
    too_long: list[str]


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass, on one device.

    Either padded on the right to one length, [rows, length]: a causal model's real tokens never attend to later
    positions, so there is no attention mask. Or packed, [1, sum of lengths], with positions that restart for each row
    and the rows' `ends`, beyond which attention does not look. The first `ends[0]` tokens are a prefix that all rows
    begin with, which is computed once.
    """

    input_ids: torch.Tensor
    places: torch.Tensor  # [response tokens]: flat positions whose next token is a response token
    labels: torch.Tensor  # [response tokens]: that token
    tokens: int  # real ones, without padding
    position_ids: torch.Tensor | None = None  # [1, length]
    ends: torch.Tensor | None = None  # [rows + 1], int32; row i is the prefix and ends[i] to ends[i + 1]
    longest: int = 0  # row, tokens

    def model_inputs(self) -> dict[str, Any]:
        """What a decoder's forward takes."""
        if self.ends is None:
            return {"input_ids": self.input_ids}
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "row_ends": self.ends,
            "longest_row": self.longest,
        }


def encode(tokenizer: PreTrainedTokenizerBase, rows: list[Row], max_length: int, *, shorten: bool) -> Encoded:
    """Rows as examples of at most `max_length` tokens.

    Of a row that is longer, the context loses words from its end (if `shorten`); intent and answer stay whole. What
    then is still too long is left out: an answer that is cut would teach the model to end in the middle.
    """
    encoded = Encoded([], [], [])
    for row in rows:
        completion = completion_ids(tokenizer, row.instruction, row.input, row.output)
        prompt = prompt_ids(tokenizer, row.instruction, row.input)
        if len(prompt) + len(completion) > max_length:
            text = fitting_input(tokenizer, row, max_length - len(completion)) if shorten else None
            if text is None:
                encoded.too_long.append(row.id)
                continue
            prompt = prompt_ids(tokenizer, row.instruction, text)
            encoded.shortened.append(row.id)
        encoded.examples.append(Example(row.id, prompt, completion))
    return encoded


def steps_of_epoch(examples: list[Example], batch_size: int, seed: int, epoch: int) -> Iterator[list[Example]]:
    """Yield the rows of each optimizer step of an epoch: all rows once, in an order drawn from seed and epoch."""
    order = list(examples)
    random.Random(f"order {seed} {epoch}").shuffle(order)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def micro_batches(
    examples: list[Example], size: int, pad: int, device: torch.device, *, packing: bool
) -> Iterator[Batch]:
    """Yield the rows in batches of at most `size`, those of like length together so that little is padded."""
    by_length = sorted(examples, key=len)
    for start in range(0, len(by_length), size):
        rows = by_length[start : start + size]
        if not packing:
            yield collate(rows, pad, device)
        elif device.type == "cpu":
            yield pack(rows, device, share_prefix=True)
        else:  # the kernel for packed rows on a GPU knows no shared prefix, and those of products want whole tiles
            yield pack(rows, device, multiple=TILE)


def collate(examples: list[Example], pad: int, device: torch.device) -> Batch:
    """The rows padded on the right to the longest."""
    longest = max(map(len, examples))
    ids = [[*example.prompt, *example.completion, *[pad] * (longest - len(example))] for example in examples]
    return Batch(
        on_device(device, ids),
        on_device(device, _places(examples, [longest * row for row in range(len(examples))])),
        on_device(device, [token for example in examples for token in example.completion]),
        sum(map(len, examples)),
    )


def pack(examples: list[Example], device: torch.device, *, share_prefix: bool = False, multiple: int = 1) -> Batch:
    """Return the rows one after the other; at the end there is padding to a multiple of so many tokens.

    Padding is a row of its own, which no other row sees, and which has no labels.

    With `share_prefix` the tokens that all prompts begin with (the chat template's start and the fixed instruction)
    are there once. In a causal model their hidden states do not depend on what follows, so each row gets the same loss.
    """
    prefix = _common_prefix(examples) if share_prefix else 0
    ends = list(accumulate((len(example) - prefix for example in examples), initial=prefix))
    own = [token for example in examples for token in (*example.prompt[prefix:], *example.completion)]
    positions = [place for example in examples for place in range(prefix, len(example))]
    if padding := -ends[-1] % multiple:
        ends.append(ends[-1] + padding)
        own += [0] * padding
        positions += range(padding)
    return Batch(
        on_device(device, [[*examples[0].prompt[:prefix], *own]]),
        on_device(device, _places(examples, [start - prefix for start in ends])),
        on_device(device, [token for example in examples for token in example.completion]),
        sum(map(len, examples)),
        on_device(device, [[*range(prefix), *positions]]),
        on_device(device, ends, torch.int32),
        max(*map(len, examples), padding),
    )


def _common_prefix(examples: list[Example]) -> int:
    """Return how many tokens all prompts begin with; the last token of a prompt stays each row's own."""
    if len(examples) < 2:
        return 0
    first, last = min(example.prompt for example in examples), max(example.prompt for example in examples)
    most = min(len(example.prompt) for example in examples) - 1
    return next((place for place in range(most) if first[place] != last[place]), most)


def _places(examples: list[Example], starts: list[int]) -> list[int]:
    """Return the flat positions before the response tokens of rows whose first token would be at `starts`."""
    return [
        start + place - 1
        for start, example in zip(starts, examples, strict=False)
        for place in range(len(example.prompt), len(example))
    ]


def on_device(device: torch.device, values: Any, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Return numbers as a tensor; the host does not wait until a GPU has it."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
