"""Several processes that train one adapter: each computes a share of every step's rows, and gradients are summed.

A step's loss is divided by the response tokens of all its rows before it is differentiated, so the sum over processes
is the gradient of one process that has all rows, whatever the shares are.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from howto.stop import LOOK, RANK, Stop

T = TypeVar("T")

PORT = "HOWTO_PORT"
FAILED = "train: one of the processes has failed, and says why itself; nothing goes on without it"
PATIENCE = timedelta(minutes=30)  # until a process that does not answer is given up


class Group:
    """This process and those that work with it."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        """By default a process alone."""
        self.rank, self.size = rank, size

    def device(self, device: torch.device) -> torch.device:
        """The device of this process, if that of all is `device`: on GPUs one of its own."""
        return torch.device("cuda", self.rank) if device.type == "cuda" else device

    def share(self, rows: Sequence[T]) -> list[T]:
        """The rows of this process: every `size`-th, so that like lengths are dealt evenly if they stand together."""
        return list(rows[self.rank :: self.size])

    def stop(self, message: str) -> BaseException:
        """What to raise where every process comes to the same end: the first one says why, the others are silent."""
        return Stop(message) if self.rank == 0 else SystemExit()

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum each tensor over the processes, in place."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        try:
            distributed.all_reduce(flat)
        except RuntimeError:  # of which the processes that are left hear in many words
            raise self.stop(FAILED) from None
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()


@contextmanager
def joined(processes: int, module: str, device: torch.device) -> Iterator[Group]:
    """The group of so many processes. The first one starts the others, as `python -m module`; they end with it,
    and it ends with them.

    Raises:
        Stop: there are fewer GPUs than processes.
    """
    if processes == 1:
        yield Group()
        return
    if device.type == "cuda" and torch.cuda.device_count() < processes:
        raise Stop(
            f"params.yaml: profiles.*.train.processes is {processes}, and torch sees {torch.cuda.device_count()} "
            "GPUs; a process wants one of its own"
        )
    rank = int(os.environ.get(RANK, "0"))
    port = os.environ.get(PORT) or str(_free_port())
    others = []
    for number in range(1, processes if rank == 0 else 1):
        environment = {**os.environ, RANK: str(number), PORT: port}
        others.append(subprocess.Popen([sys.executable, "-m", module], env=environment))
    leaving = threading.Event()
    if others:
        threading.Thread(target=_end_with_any_of, args=(others, leaving), daemon=True).start()
    ended = False
    try:
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://127.0.0.1:{port}",
            rank=rank,
            world_size=processes,
            timeout=PATIENCE,
        )
        yield Group(rank, processes)
        distributed.destroy_process_group()
        ended = True
    finally:
        leaving.set()
        for process in others:
            if not ended:
                process.terminate()
            process.wait()


def _end_with_any_of(others: list[subprocess.Popen[bytes]], leaving: threading.Event) -> None:
    """End this process when one of the others has failed: it would wait for it, in a library that cannot be told."""
    while not leaving.wait(LOOK):
        if not any(process.poll() for process in others):
            continue
        print(f"error: {FAILED}", file=sys.stderr, flush=True)
        for process in others:
            process.terminate()
        os._exit(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
