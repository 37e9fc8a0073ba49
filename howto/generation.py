"""Greedy generation of answers, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """What the model wrote to prompt number `index`. `stop` is "eos" or "length"."""

    index: int
    text: str
    prompt_tokens: int
    new_tokens: int
    stop: str


@torch.inference_mode()
def generate(
    model: Any,  # a PreTrainedModel, or a PeftModel around one
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[Answer]:
    """Yield one answer for each prompt, the longest prompts first (they need the most memory: it fails early).

    Prompts are padded on the left and masked there, by length. What the model folder's own
    generation config says of sampling is not used.
    """
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        length = max(len(prompts[index]) for index in indices)
        input_ids = torch.full((len(indices), length), tokenizer.eos_token_id)  # [rows, length]
        mask = torch.zeros_like(input_ids)
        for row, index in enumerate(indices):
            input_ids[row, length - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, length - len(prompts[index]) :] = 1
        output = model.generate(
            input_ids=input_ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
        )
        for index, ids in zip(indices, output[:, length:].tolist(), strict=True):
            ended = tokenizer.eos_token_id in ids
            answer = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
            text = tokenizer.decode(answer, skip_special_tokens=True).strip()
            yield Answer(index, text, len(prompts[index]), len(answer), "eos" if ended else "length")
