"""Copies between host and GPU that the host does not wait for. On a CPU nothing is copied."""

from collections.abc import Callable
from typing import Any

import torch


def async_tensor(values: Any, device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """Return numbers (nested lists or an array) as a tensor on `device`; the host does not wait for the copy."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def async_tolist(values: torch.Tensor) -> Callable[[], Any]:
    """Start to copy a tensor to the host; return a function that waits for the copy and returns `values.tolist()`.

    The function does not wait for work that the GPU was given after this call. On a CPU, do not write to `values`
    before the function is called.
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
