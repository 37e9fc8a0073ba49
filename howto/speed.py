"""How fast a device multiplies and moves: this machine's is measured in a second, a GPU's is what its maker publishes.

A published peak is reached by no program. What share of it this one reaches on a GPU has not been measured: it is
assumed, and whoever prints such a figure says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from howto.costs import Work
from howto.params.machine import Machine, ProfileMachine
from howto.shapes import Shape, published
from howto.stop import Stop

if TYPE_CHECKING:
    import torch

ASSUMED_SHARE = 0.5  # of a GPU's published arithmetic and bandwidth; not measured
# How often a step of training passes over the activations it keeps (dropout, norms, rotary positions, the activation
# function, copies; forth and back), and a step of decoding over the keys and values of the rows in flight. On a CPU
# they are fitted to what was measured (benchmarks/estimate.py says how well); on a GPU they are assumed.
PASSES = {"cpu": 43.0, "cuda": 8.0}
LOOKS = {"cpu": 8.0, "cuda": 1.0}
PCIE = 32e9  # bytes a second between GPUs of which no link is known: PCIe 4.0 x16, as published
SECONDS = 0.35  # for each of the three measurements
LARGEST = 4096  # of a matrix that is tried; a larger one is multiplied no faster
COPIED = 2**26  # bytes


@dataclass(frozen=True)
class Speed:
    """What a device does in a second."""

    name: str
    flops: float  # in products of many rows with a matrix of the model
    few: float  # the same with as many rows as answers are in flight
    bandwidth: float  # bytes moved in passes over memory
    measured: bool
    passes: float
    looks: float
    memory: float = 0.0  # bytes, of one GPU
    link: float = 0.0  # bytes to other GPUs

    def seconds(self, work: Work, *, few: bool = False) -> float:
        """Products and passes one after the other, as they are computed."""
        moved = work.read + work.activations * self.passes + work.cached * self.looks
        return work.flops / (self.few if few else self.flops) + moved / self.bandwidth


def published_speed(name: str, precision: str) -> Speed:
    """That of a GPU, at the assumed share of its peaks.

    Raises:
        Stop: published.yaml does not have it.
    """
    gpus = published("gpus")
    found = {key.lower(): key for key in gpus}.get(name.lower())
    if found is None:
        raise Stop(f"--device {name}: not known; choose this, or one of: {', '.join(gpus)} (howto/published.yaml)")
    gpu = gpus[found]
    flops = gpu[precision] * 1e12 * ASSUMED_SHARE
    bandwidth = gpu["bandwidth"] * 1e9 * ASSUMED_SHARE
    memory, link = gpu["memory"] * 1e9, gpu["link"] * 1e9 * ASSUMED_SHARE
    return Speed(found, flops, flops, bandwidth, False, PASSES["cuda"], LOOKS["cuda"], memory, link)


def measured_speed(machine: Machine, profile: ProfileMachine, shape: Shape, *, tokens: int, slots: int) -> Speed:
    """That of this machine, in the profile's precision and threads, with matrices of the model's size.

    Raises:
        Stop: the profile wants a GPU and there is none.
    """
    from howto.torch_setup import set_up_torch

    device = set_up_torch(machine, profile)

    import torch

    dtype = getattr(torch, profile.precision)
    weight = torch.randn(min(shape.intermediate, LARGEST), min(shape.hidden, LARGEST), device=device).to(dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this CPU, {machine.threads} threads"
    return Speed(
        name,
        _multiplied(weight, max(1, min(tokens, LARGEST))),
        _multiplied(weight, max(1, min(slots, LARGEST))),
        _copied(device),
        True,
        PASSES[device.type],
        LOOKS[device.type],
        float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0.0,
        link_of(name),
    )


def link_of(name: str) -> float:
    """Bytes a second to other GPUs, at the assumed share of what is published; `name` is the driver's."""
    links = [gpu["link"] * 1e9 for key, gpu in published("gpus").items() if key.lower() in name.lower()]
    return (max(links) if links else PCIE) * ASSUMED_SHARE


def _multiplied(weight: torch.Tensor, rows: int) -> float:
    """FLOP/s of [rows, in] x [in, out], at best."""
    import torch

    one = torch.randn(rows, weight.shape[1], device=weight.device).to(weight.dtype)
    return 2 * rows * weight.numel() / _best(lambda: one @ weight.T, weight.device)


def _copied(device: torch.device) -> float:
    """Bytes read and written in a second, at best."""
    import torch

    one = torch.zeros(COPIED // 4, device=device)
    other = torch.empty_like(one)
    return 2 * COPIED / _best(lambda: other.copy_(one), device)


def _best(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that `work` takes at best, of what fits into SECONDS, once at least."""
    import torch

    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    first = once()  # with what is set up on the way
    times = [once()] if first < SECONDS else [first]
    until = time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        times.append(once())
    return min(times)
