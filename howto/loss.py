"""The loss of fine-tuning: cross-entropy of the response and its end-of-sequence token, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from howto.batches import IGNORED, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def response_loss(model: PreTrainedModel, batch: Batch, device: torch.device) -> torch.Tensor:
    """Sum (not mean) of the negative log-likelihood, in nats, of the batch's response tokens; a float32 scalar.

    The caller divides by the response tokens of the whole optimizer step, so that every token weighs
    the same however the step is cut into batches. `model` is the base, with LoRA layers or without.
    Logits are computed where there is a label, and nowhere else.
    """
    input_ids = batch.input_ids.to(device)  # [rows, length]
    following = batch.labels[:, 1:]  # [rows, length - 1]: the label of the token after each position
    where = (following != IGNORED).to(device)
    hidden = model.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state  # [rows, length, hidden]
    logits = model.get_output_embeddings()(hidden[:, :-1][where])  # [response tokens, vocabulary]
    return cross_entropy(logits.float(), following.to(device)[where], reduction="sum")
