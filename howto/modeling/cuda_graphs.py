"""CUDA graphs of one model's passes: a replayed graph starts all kernels of a pass at once.

Without graphs the host takes longer to start the many kernels than a GPU takes to run them.
"""

import sys
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

from howto.core.errors import one_line

Graph = TypeVar("Graph")


class GraphCache(Generic[Graph]):
    """Captured passes by size, in one memory pool. A size is captured when it first comes up."""

    def __init__(self, stage: str) -> None:
        """`stage` begins the line that is printed if this model cannot be captured."""
        self._stage = stage
        self._graphs: dict[Hashable, Graph] = {}
        self._pool: Any = torch.cuda.graph_pool_handle()
        self.works = True

    def __len__(self) -> int:
        return len(self._graphs)

    def get(self, size: Hashable, capture: Callable[[Any], Graph]) -> Graph | None:
        """Return the graph of this size, or None if this model cannot be captured.

        `capture` captures it in the memory pool that it is given, and raises RuntimeError if that fails.
        """
        if self.works and size not in self._graphs:
            stream = torch.cuda.current_stream()
            try:
                self._graphs[size] = capture(self._pool)
            except RuntimeError as error:
                torch.cuda.set_stream(stream)
                reason = f"CUDA graphs do not support this model ({one_line(first_cause(error))})"
                print(f"{self._stage}: slower, because {reason}", file=sys.stderr)
                self.works = False
        return self._graphs[size] if self.works else None


def first_cause(error: BaseException) -> BaseException:
    """Return the error that was raised first: a failed capture raises again when it ends, which hides the reason."""
    while error.__context__ is not None:
        error = error.__context__
    return error
