"""Rows as token ids, and in batches for the forward pass."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from howto.core.schema import Row
from howto.modeling.async_copy import async_tensor
from howto.modeling.chat import Chat


@dataclass(frozen=True)
class Example:
    """A row as token ids: the prompt, and the response with the token that ends it.

    The prompt is [] if the row is too long without history and context.
    """

    id: str
    prompt: list[int]
    completion: list[int]
    is_shortened: bool = False  # the history lost its first turns, or the context words from its end

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True)
class Batch:
    """Rows for one forward pass, on one device.

    Padded: [rows, longest row], filled on the right. No mask: tokens of a causal model do not attend to later ones.
    Packed: [1, sum of lengths], with positions that restart for each row. Row i is at row_ends[i] to row_ends[i + 1]
    and attends to itself and to the first row_ends[0] tokens, a prefix that all rows share.
    """

    input_ids: Tensor
    label_positions: Tensor  # [response tokens]: flat positions whose next token is a response token
    labels: Tensor  # [response tokens]: that token
    position_ids: Tensor | None = None  # [1, length]
    row_ends: Tensor | None = None  # [rows + 1], int32
    longest_row: int = 0  # tokens

    def model_inputs(self) -> dict[str, Any]:
        """Return the arguments of the decoder's forward pass."""
        inputs = {"input_ids": self.input_ids}
        if self.row_ends is None:
            return inputs
        return {**inputs, "position_ids": self.position_ids, "row_ends": self.row_ends, "longest_row": self.longest_row}


def encode_row(chat: Chat, row: Row, *, max_prompt: int | None = None, max_length: int | None = None) -> Example:
    """Return a row as token ids, shortened to `max_prompt` or, with its response, to `max_length` tokens."""
    prompt, completion = chat.prompt_ids(row), chat.completion_ids(row)
    limit = max_length - len(completion) if max_length is not None else max_prompt
    if limit is None or len(prompt) <= limit:
        return Example(row.id, prompt, completion)
    shorter = chat.shorten(row, limit)
    prompt = [] if shorter is None else chat.prompt_ids(shorter)
    return Example(row.id, prompt, completion, is_shortened=shorter is not None)


def encode(chat: Chat, rows: list[Row], max_length: int, *, shorten: bool) -> list[Example]:
    """Return the rows of at most `max_length` tokens; with `shorten`, also those that fit in a shorter form.

    The others are left out: an answer that is cut would teach the model to stop in the middle.
    """
    examples = [encode_row(chat, row, max_length=max_length) for row in rows]
    return [example for example in examples if example.prompt and (shorten or not example.is_shortened)]


def collate(examples: list[Example], pad: int, device: torch.device) -> Batch:
    """Return the rows padded on the right to the longest."""
    longest = max(map(len, examples))
    ids = [[*example.prompt, *example.completion, *[pad] * (longest - len(example))] for example in examples]
    return Batch(
        async_tensor(ids, device),
        async_tensor(_label_positions(examples, [longest * row for row in range(len(examples))]), device),
        async_tensor([token for example in examples for token in example.completion], device),
    )


def pack(examples: list[Example], device: torch.device, *, share_prefix: bool = False, multiple: int = 1) -> Batch:
    """Return the rows as one sequence, padded to a multiple of so many tokens by a row without labels.

    With `share_prefix` the tokens that all prompts begin with (the chat template's start and the fixed instruction)
    are computed once. Their hidden states do not depend on what follows, so each row's loss is the same.
    """
    prefix = _common_prefix(examples) if share_prefix else 0
    ends = list(accumulate((len(example) - prefix for example in examples), initial=prefix))
    ids = [token for example in examples for token in (*example.prompt[prefix:], *example.completion)]
    positions = [position for example in examples for position in range(prefix, len(example))]
    if padding := -ends[-1] % multiple:
        ends.append(ends[-1] + padding)
        ids += [0] * padding
        positions += range(padding)
    return Batch(
        async_tensor([[*examples[0].prompt[:prefix], *ids]], device),
        async_tensor(_label_positions(examples, [end - prefix for end in ends]), device),
        async_tensor([token for example in examples for token in example.completion], device),
        async_tensor([[*range(prefix), *positions]], device),
        async_tensor(ends, device, torch.int32),
        max(*map(len, examples), padding),
    )


def _common_prefix(examples: list[Example]) -> int:
    """Return how many tokens all prompts begin with, not counting the last token of the shortest."""
    if len(examples) < 2:
        return 0
    first, last = min(example.prompt for example in examples), max(example.prompt for example in examples)
    most = min(len(example.prompt) for example in examples) - 1
    return next((position for position in range(most) if first[position] != last[position]), most)


def _label_positions(examples: list[Example], starts: list[int]) -> list[int]:
    """Return the flat positions before the response tokens of rows whose first token would be at `starts`."""
    return [
        start + position - 1
        for start, example in zip(starts, examples, strict=False)
        for position in range(len(example.prompt), len(example))
    ]
