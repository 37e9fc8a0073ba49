"""Copies from a GPU for which the host does not wait until it needs them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def read_later(values: torch.Tensor) -> Callable[[], Any]:
    """Begin to copy a tensor to the host; return a function that waits for the copy and gives its numbers.

    The function returns what `values.tolist()` would have returned now. It does not wait for work that the GPU was
    given after this call. On a CPU nothing is copied, so `values` must not be written to before it is read.
    """
    if not values.is_cuda:
        return values.tolist
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()

    def wait() -> Any:
        copied.synchronize()
        return copy.tolist()

    return wait
