"""The loss of fine-tuning: cross-entropy of the response and its end-of-sequence token, nothing else.

Most of what a small model with a large vocabulary computes is logits. Here they are computed where there is a label and
nowhere else, a chunk at a time, together with the gradient that they pass on: no tensor [rows, length, vocabulary] ever
exists, and none is kept for the way back (as in Liger's fused linear cross-entropy, Hsu et al. 2024, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from howto.modeling.collate import Batch

CHUNK = 2**24  # logits in a chunk: 64 MiB in float32


def response_loss(
    model: PreTrainedModel, batch: Batch, *, fused: bool = True, hidden: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum (not mean) of the negative log-likelihood, in nats, of the batch's response tokens; a float32 scalar.

    The caller divides by the response tokens of the whole optimizer step, so that every token weighs
    the same however the step is cut into batches. `model` is the base, with LoRA layers or without.

    `fused` is for models whose logits are a plain linear layer of the last hidden state, as they are in
    Llama; without it the model's own forward computes them, with whatever it does beside. `hidden` are the last
    hidden states [rows, length, hidden size], if they are computed by now.
    """
    inputs = batch.model_inputs()
    if not fused:
        logits = model(**inputs, use_cache=False).logits  # [rows, length, vocabulary]
        return cross_entropy(logits.flatten(0, 1)[batch.places].float(), batch.labels, reduction="sum")
    if hidden is None:
        hidden = model.get_decoder()(**inputs, use_cache=False).last_hidden_state  # [rows, length, hidden size]
    head = model.get_output_embeddings()
    return _LinearCrossEntropy.apply(hidden.flatten(0, 1)[batch.places], head.weight, batch.labels)  # type: ignore[no-any-return, no-untyped-call]


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the logits are a frozen linear layer, without bias, of the hidden state: what `fused` needs."""
    head = model.get_output_embeddings()
    return type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad


class _LinearCrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of `hidden @ weight.T`; `weight` gets no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """`hidden` [tokens, hidden size], `weight` [vocabulary, hidden size], `labels` [tokens]."""
        wants_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wants_gradient else None
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        size = max(1, min(len(labels), CHUNK // weight.shape[0]))
        logits = hidden.new_empty(size, weight.shape[0])  # [chunk, vocabulary], used again for every chunk
        for start in range(0, len(labels), size):
            part, wanted = hidden[start : start + size], labels[start : start + size]
            rows = logits[: len(part)]
            torch.mm(part, weight.T, out=rows)
            exact = rows.to(total.dtype)
            of_labels = exact.gather(1, wanted[:, None])
            highest = exact.amax(dim=1, keepdim=True)
            probabilities = torch.softmax(exact, dim=1)
            # The highest probability is exp(highest - normalizer), and never too small for a float.
            normalizer = highest - probabilities.amax(dim=1, keepdim=True).log()
            total += (normalizer - of_labels).sum()
            if gradient is not None:
                torch.mm(probabilities.to(weight.dtype), weight, out=gradient[start : start + size])
                gradient[start : start + size] -= weight[wanted]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        """The gradient was computed on the way forth."""
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype), None, None
