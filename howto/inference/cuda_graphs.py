"""Decode steps captured as CUDA graphs: in a replay, a GPU waits for no Python between its kernels.

A graph has fixed sizes. So a step is rounded up: rows to one of GRAPH_ROWS or to all slots, and positions to a multiple
of GRAPH_POSITIONS. Results for unused slots are dropped, and positions that a row has not reached are masked. There are
few sizes because a capture takes longer than many steps, and a batch is full for most of a run.
"""

from collections.abc import Callable
from typing import Any

import torch

from howto.modeling.cuda_graphs import GraphCache

GRAPH_ROWS = (8, 64)
GRAPH_POSITIONS = 256
Step = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]  # as `KVCache.decode`
Replay = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # the same for a fixed reach


class DecodeGraphs:
    """The graphs of one KV cache."""

    def __init__(self, step: Step, capacity: int, length: int) -> None:
        """`capacity` and `length` are those of the KV cache."""
        self._step, self._capacity, self._length = step, capacity, length
        self.captured: GraphCache[Replay] = GraphCache("infer")

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, reach: int) -> torch.Tensor:
        """Do as `KVCache.decode`; the logits are valid until the next step."""
        rows, padded_reach = graph_size(len(tokens), reach, self._capacity, self._length)
        padding = (0, rows - len(tokens))
        inputs = [torch.nn.functional.pad(values, padding) for values in (tokens, positions)]
        replay = self.captured.get(
            (rows, padded_reach), lambda pool: _capture(self._step, inputs[0], inputs[1], padded_reach, pool)
        )
        return replay(*inputs)[: len(tokens)] if replay else self._step(tokens, positions, reach)


def graph_size(rows: int, reach: int, capacity: int, length: int) -> tuple[int, int]:
    """Return the rows and the reach of the graph for a step."""
    padded_rows = next((size for size in GRAPH_ROWS if rows <= size < capacity), capacity)
    return padded_rows, min(length, -(-reach // GRAPH_POSITIONS) * GRAPH_POSITIONS)


def _capture(step: Step, tokens: torch.Tensor, positions: torch.Tensor, reach: int, pool: Any) -> Replay:
    # The passes before the capture store keys and values too: those of this step, so they do no harm.
    own_tokens, own_positions = tokens.clone(), positions.clone()
    warm_up = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(2):
            step(own_tokens, own_positions, reach)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        logits = step(own_tokens, own_positions, reach)

    def replay(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        own_tokens.copy_(tokens)
        own_positions.copy_(positions)
        graph.replay()
        return logits

    return replay
