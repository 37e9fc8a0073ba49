"""Training passes as CUDA graphs: a forward pass and its backward pass for each length of a batch.

Lengths are padded to multiples, so that a few graphs serve all batches. Every step is a replay, also the first one of a
resumed run, so the bytes are the same. Only the hidden states outlive a step in the graphs' shared memory pool, and
each graph keeps its own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from howto.modeling.cuda_graphs import GraphCache

if TYPE_CHECKING:
    from howto.modeling.collate import Batch

REPLAY_TOLERANCE = 1e-2  # relative error to a pass without a graph, whose kernels round in bfloat16
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # token ids, position ids, row ends


class TrainingGraphs:
    """The graphs of one decoder."""

    def __init__(
        self, decoder: Callable[..., Any], weights: Sequence[torch.nn.Parameter], rows: int, longest: int
    ) -> None:
        """`weights` are trained; a batch has at most `rows` rows, and a row at most `longest` tokens.

        The weights' gradients must exist before the first step and stay in the same memory.
        """
        self._decoder, self._weights = decoder, list(weights)
        self._ends, self._longest = rows + 2, longest
        self._trigger = torch.zeros((), device=self._weights[0].device, requires_grad=True)
        self.graphs: GraphCache[_CapturedPass] = GraphCache("train")

    @property
    def is_ready(self) -> bool:
        """Whether the gradients exist."""
        return all(weight.grad is not None for weight in self._weights)

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """Return the last hidden states [1, length, hidden size]; their backward pass adds to the weights' gradients.

        They are valid until the next pass of this length.
        """
        assert batch.position_ids is not None and batch.row_ends is not None
        no_rows = batch.row_ends[-1:].expand(self._ends - len(batch.row_ends))
        inputs = (batch.input_ids, batch.position_ids, torch.cat([batch.row_ends, no_rows]))
        captured = self.graphs.get(batch.input_ids.shape[1], lambda pool: self._capture(inputs, pool))
        if captured is None:
            return self._forward(inputs)
        for fixed, new in zip(captured.inputs, inputs, strict=True):
            fixed.copy_(new)
        return _ReplayedPass.apply(self._trigger, captured)  # type: ignore[no-any-return, no-untyped-call]

    def _forward(self, inputs: Inputs) -> torch.Tensor:
        ids, positions, ends = inputs
        return self._decoder(  # type: ignore[no-any-return]
            input_ids=ids, position_ids=positions, row_ends=ends, longest_row=self._longest, use_cache=False
        ).last_hidden_state

    def _capture(self, inputs: Inputs, pool: Any) -> _CapturedPass:
        is_first = not len(self.graphs)
        if is_first:
            gc.collect()  # left-over tensors of other passes would bring their streams into the capture
            gc.freeze()  # each capture collects garbage, and need not look through all imported modules
        captured = _CapturedPass(self._forward, inputs, self._weights, pool)
        if is_first:
            captured.check(self._forward)
        return captured


class _CapturedPass:
    """The graphs of one length."""

    def __init__(
        self, forward: Callable[[Inputs], torch.Tensor], inputs: Inputs, weights: list[torch.nn.Parameter], pool: Any
    ) -> None:
        self.inputs: Inputs = tuple(values.clone() for values in inputs)  # type: ignore[assignment]
        self._weights = weights
        self._gradients = [weight.grad for weight in weights if weight.grad is not None]
        stream = torch.cuda.current_stream()
        hidden = forward(self.inputs)  # libraries choose and load their kernels for this length
        torch.autograd.grad(hidden, weights, torch.zeros_like(hidden))
        del hidden
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, pool=pool, stream=stream):
            hidden = forward(self.inputs)
        self.upstream = torch.zeros_like(hidden)
        with torch.cuda.graph(self.backward, pool=pool, stream=stream):
            gradients = torch.autograd.grad(hidden, weights, self.upstream)
            torch._foreach_add_(self._gradients, list(gradients))
        self.hidden = hidden.detach()

    def check(self, forward: Callable[[Inputs], torch.Tensor]) -> None:
        """Compare a replay with a pass without a graph; the gradients stay as they were.

        Raise RuntimeError if they differ by more than rounding.
        """
        before = [gradient.clone() for gradient in self._gradients]
        hidden = forward(self.inputs)
        self.upstream.copy_(hidden.detach()).sign_()
        expected = torch.autograd.grad(hidden, self._weights, self.upstream)
        torch._foreach_zero_(self._gradients)
        self.forward.replay()
        self.backward.replay()
        replayed, eager = (torch.cat([part.flatten() for part in parts]) for parts in (self._gradients, expected))
        torch._foreach_copy_(self._gradients, before)
        for found, right in ((self.hidden.float(), hidden.detach().float()), (replayed, eager)):
            if not (found - right).norm() <= REPLAY_TOLERANCE * right.norm():  # also if there is a NaN
                raise RuntimeError("a replayed pass differs from an eager one")


class _ReplayedPass(torch.autograd.Function):
    """A replay as a step of autograd; `trigger` has a gradient so that autograd calls `backward`."""

    @staticmethod
    def forward(ctx: Any, trigger: torch.Tensor, captured: _CapturedPass) -> torch.Tensor:
        """Return the hidden states."""
        ctx.captured = captured
        captured.forward.replay()
        return captured.hidden.view_as(captured.hidden)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        """Add to the weights' gradients in place."""
        ctx.captured.upstream.copy_(outputs[0])
        ctx.captured.backward.replay()
        return None, None
