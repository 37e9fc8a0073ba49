"""The loss of fine-tuning: cross-entropy of the response and its end-of-sequence token, nothing else.

A small model with a large vocabulary spends most of its time on logits. Here they are computed only where there is a
label, a chunk at a time, together with the gradient of the hidden states. So no tensor [rows, length, vocabulary] ever
exists (as in Liger's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from howto.modeling.collate import Batch

CHUNK_LOGITS = 2**24  # 64 MiB in float32


def response_loss(model: PreTrainedModel, batch: Batch, *, fused: bool = True, hidden: Tensor | None = None) -> Tensor:
    """Return the sum (not mean) of the negative log-likelihood, in nats, of the batch's response tokens; float32.

    The caller divides by the response tokens of the whole optimizer step, so that every token has the same weight
    however the step is cut into batches. `model` is the base, with LoRA layers or without.

    `fused` is for models with a plain head (see `has_plain_head`); without it the model's own forward pass computes the
    logits. `hidden` are the last hidden states [rows, length, hidden size], if the caller has them.
    """
    inputs = batch.model_inputs()
    if not fused:
        logits = model(**inputs, use_cache=False).logits  # [rows, length, vocabulary]
        return cross_entropy(logits.flatten(0, 1)[batch.label_positions].float(), batch.labels, reduction="sum")
    if hidden is None:
        hidden = model.get_decoder()(**inputs, use_cache=False).last_hidden_state  # [rows, length, hidden size]
    head = model.get_output_embeddings()
    return _LinearCrossEntropy.apply(hidden.flatten(0, 1)[batch.label_positions], head.weight, batch.labels)  # type: ignore[no-any-return, no-untyped-call]


def has_plain_head(model: PreTrainedModel) -> bool:
    """Return whether the logits are a frozen linear layer, without bias or cap, of the last hidden state."""
    head = model.get_output_embeddings()
    if getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None) is not None:
        return False
    return type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T`; `weight` gets no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Compute loss and gradient of `hidden` [tokens, hidden size], for `weight` [vocabulary, hidden size]."""
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        size = max(1, min(len(labels), CHUNK_LOGITS // weight.shape[0]))
        buffer = hidden.new_empty(size, weight.shape[0])  # [chunk, vocabulary]
        for start in range(0, len(labels), size):
            part, chunk_labels = hidden[start : start + size], labels[start : start + size]
            logits = torch.mm(part, weight.T, out=buffer[: len(part)]).to(total.dtype)
            label_logits = logits.gather(1, chunk_labels[:, None])
            highest = logits.amax(dim=1, keepdim=True)
            probabilities = torch.softmax(logits, dim=1)
            # The highest probability is exp(highest - normalizer), which never underflows.
            normalizer = highest - probabilities.amax(dim=1, keepdim=True).log()
            total += (normalizer - label_logits).sum()
            if gradient is not None:
                torch.mm(probabilities.to(weight.dtype), weight, out=gradient[start : start + size])
                gradient[start : start + size] -= weight[chunk_labels]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        """Return the gradient, which the forward pass has computed."""
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype), None, None
