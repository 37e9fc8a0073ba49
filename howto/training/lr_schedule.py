"""The learning rate at each step."""

import math
from typing import Literal


def learning_rate_factor(
    schedule: Literal["cosine", "linear", "constant"], warmup_ratio: float, step: int, steps: int
) -> float:
    """Return the share of the peak rate at `step` (from 0) of `steps`: a linear warm-up, then `schedule`."""
    warmup = round(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * done)
    return 1 - done if schedule == "linear" else 1.0
