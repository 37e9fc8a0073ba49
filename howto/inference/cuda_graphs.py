"""Steps that are captured once as CUDA graphs, and then replayed: a GPU waits for no Python between its kernels.

A graph is of fixed sizes. So steps are rounded up: rows to one of ROWS or to all slots, and places to whole PLACES.
What is computed for slots that are not in use goes nowhere, and places that a row has not reached are masked. Sizes are
few because each is captured once, which takes longer than many steps, while a batch is full for most of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

ROWS = (8, 64)
PLACES = 256
Pass = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


class Graphs:
    """The graphs of one model, captured when a size is needed for the first time."""

    def __init__(self, forward: Pass, capacity: int, length: int) -> None:
        """`forward(tokens, places, longest)` is a step of so many rows, the first ones of `capacity` slots."""
        self._forward, self._capacity, self._length = forward, capacity, length
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._works = True
        self._pool = torch.cuda.graph_pool_handle()

    def step(self, tokens: torch.Tensor, places: torch.Tensor, longest: int) -> torch.Tensor:
        """The logits [rows, vocabulary] of a step; they are good until the next one."""
        rows, reach = rounded(len(tokens), longest, self._capacity, self._length)
        padding = rows - len(tokens)
        padded = [torch.nn.functional.pad(values, (0, padding)) for values in (tokens, places)]
        if not self._works:
            return self._forward(tokens, places, longest)
        if (rows, reach) not in self._captured:
            stream = torch.cuda.current_stream()
            try:
                self._captured[rows, reach] = _Captured(self._forward, padded[0], padded[1], reach, self._pool)
            except RuntimeError as error:  # a model that does what cannot be captured, such as to look at a number
                torch.cuda.set_stream(stream)
                cause = first_cause(error)
                first = (str(cause).strip() or repr(cause)).splitlines()[0]
                print(f"note: this model is not captured as a CUDA graph, and so is slower ({first})", file=sys.stderr)
                self._works = False
                return self._forward(tokens, places, longest)
        return self._captured[rows, reach](padded[0], padded[1])[: len(tokens)]


def rounded(rows: int, longest: int, capacity: int, length: int) -> tuple[int, int]:
    """The sizes of the graph for a step of so many rows and places."""
    size = next((size for size in ROWS if rows <= size < capacity), capacity)
    return size, min(length, -(-longest // PLACES) * PLACES)


def first_cause(error: BaseException) -> BaseException:
    """Return the error that came first: a capture that fails raises again when it ends, which hides why it failed."""
    while error.__context__ is not None:
        error = error.__context__
    return error


class _Captured:
    """One graph."""

    def __init__(self, forward: Pass, tokens: torch.Tensor, places: torch.Tensor, longest: int, pool: Any) -> None:
        # The passes before the capture keep keys and values too: those of this very step, and so do no harm.
        self._tokens, self._places = tokens.clone(), places.clone()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                forward(self._tokens, self._places, longest)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._logits = forward(self._tokens, self._places, longest)

    def __call__(self, tokens: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        self._tokens.copy_(tokens)
        self._places.copy_(places)
        self._graph.replay()
        return self._logits
