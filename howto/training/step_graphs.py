"""Training passes captured as CUDA graphs: a forward pass and its backward pass for each length of a batch.

The host of a GPU needs longer to start a step's many kernels than the GPU to run them; a replayed graph starts them all
at once. Lengths are padded to multiples, so that a few graphs serve all batches. A length is captured when it comes up
for the first time: so every step is a replay, also the first one of a resumed run, and gives the same bytes. The graphs
share one memory pool: nothing in it outlives a step but the hidden states, which each graph keeps for itself.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from howto.modeling.collate import Batch

APART = 1e-2  # relative norm; from a pass without a graph, whose kernels round in bfloat16
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class TrainingGraphs:
    """The graphs of one decoder."""

    def __init__(
        self, decoder: Callable[..., Any], weights: Sequence[torch.nn.Parameter], rows: int, longest: int
    ) -> None:
        """`weights` are those that are trained; `rows` and `longest` are the most rows and tokens of a batch and row.

        The gradients of `weights` have to be there before the first step, and to stay in their places.
        """
        self._decoder, self._weights = decoder, list(weights)
        self._ends, self._longest = rows + 2, longest
        self._captured: dict[int, _Captured] = {}
        self._pool: Any = None
        self.works = True

    @property
    def is_ready(self) -> bool:
        """Whether the gradients are there."""
        return all(weight.grad is not None for weight in self._weights)

    def hidden(self, batch: Batch) -> torch.Tensor:
        """Return the last hidden states [1, length, hidden size]; going back from them adds to the weights' gradients.

        They are good until the next pass of this length.
        """
        assert batch.position_ids is not None and batch.ends is not None
        ends = torch.cat([batch.ends, batch.ends[-1:].expand(self._ends - len(batch.ends))])  # rows without a token
        inputs = (batch.input_ids, batch.position_ids, ends)
        length = batch.input_ids.shape[1]
        if self.works and length not in self._captured:
            self._capture(length, inputs)
        if not self.works:
            return self._forward(inputs)
        captured = self._captured[length]
        for kept, new in zip(captured.inputs, inputs, strict=True):
            kept.copy_(new)
        return _Replayed.apply(self._trigger, captured)  # type: ignore[no-any-return, no-untyped-call]

    def _forward(self, inputs: Inputs) -> torch.Tensor:
        ids, positions, ends = inputs
        return self._decoder(  # type: ignore[no-any-return]
            input_ids=ids, position_ids=positions, row_ends=ends, longest_row=self._longest, use_cache=False
        ).last_hidden_state

    def _capture(self, length: int, inputs: Inputs) -> None:
        stream = torch.cuda.current_stream()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._trigger = torch.zeros((), device=stream.device, requires_grad=True)
            gc.collect()  # what is left of other passes would bring their streams with it
            gc.freeze()  # each capture collects garbage, and need not look through all that is imported
        try:
            captured = _Captured(self._forward, inputs, self._weights, self._pool)
            if not self._captured:
                captured.check(self._forward)
            self._captured[length] = captured
        except RuntimeError as error:  # a model that cannot be captured
            torch.cuda.set_stream(stream)
            cause: BaseException = error  # a capture that ends early raises once more, and hides why
            while cause.__context__ is not None:
                cause = cause.__context__
            first = str(cause).strip().splitlines()[0]
            print(f"train: steps are not captured as CUDA graphs, and so are slower ({first})", file=sys.stderr)
            self.works = False


class _Captured:
    """The graphs of one length."""

    def __init__(
        self,
        forward: Callable[[Inputs], torch.Tensor],
        inputs: Inputs,
        weights: list[torch.nn.Parameter],
        pool: Any,
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
            found = torch.autograd.grad(hidden, weights, self.upstream)
            torch._foreach_add_(self._gradients, list(found))
        self.hidden = hidden.detach()

    def check(self, forward: Callable[[Inputs], torch.Tensor]) -> None:
        """Compare a replay with a pass without a graph; the gradients stay as they were.

        Raises:
            RuntimeError: they differ by more than rounding.
        """
        before = [gradient.clone() for gradient in self._gradients]
        hidden = forward(self.inputs)
        self.upstream.copy_(hidden.detach()).sign_()
        wanted = torch.autograd.grad(hidden, self._weights, self.upstream)
        torch._foreach_zero_(self._gradients)
        self.forward.replay()
        self.backward.replay()
        gradients = [torch.cat([part.flatten() for part in parts]) for parts in (self._gradients, wanted)]
        torch._foreach_copy_(self._gradients, before)
        for found, right in ((self.hidden.float(), hidden.detach().float()), gradients):
            if not (found - right).norm() <= APART * right.norm():  # not a number is no agreement either
                raise RuntimeError("a replayed pass computes something else")


class _Replayed(torch.autograd.Function):
    """A pass by replay, as a step of autograd; `trigger` makes autograd come back."""

    @staticmethod
    def forward(ctx: Any, trigger: torch.Tensor, captured: _Captured) -> torch.Tensor:
        """Return the hidden states."""
        ctx.captured = captured
        captured.forward.replay()
        return captured.hidden.view_as(captured.hidden)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        """Add the weights' gradients in their places."""
        ctx.captured.upstream.copy_(outputs[0])
        ctx.captured.backward.replay()
        return None, None
