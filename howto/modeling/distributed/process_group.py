"""Several processes that share the work of a stage, on one host or on several.

In training each computes a share of every step's rows, and gradients are summed. A step's loss is divided by the
response tokens of all its rows before it is differentiated, so the sum over processes is the gradient of one process
that has all rows, whatever the shares are.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from torch import distributed

from howto.core.errors import UserError
from howto.core.process import RANK
from howto.modeling.distributed.heartbeat import pulse
from howto.modeling.distributed.launch import FAILED, LOST, is_in_a_group

T = TypeVar("T")

PATIENCE = timedelta(minutes=10)  # until a process that lives, but does not come to a step's end, is given up
WORD = 3.0  # seconds that a process which has lost another one leaves it to say why
SAME_END = 20.0  # seconds that one leaves it to the first process to say why all end: torchrun ends it before they pass


class Group:
    """This process and those that work with it."""

    def __init__(
        self, rank: int = 0, size: int = 1, local_rank: int = 0, here: int = 1, *, of: torch.device | None = None
    ) -> None:
        """By default a process alone. `here` are on this host, where `local_rank` counts; `of`: the device of all."""
        self.rank, self.size, self.local_rank, self.here = rank, size, local_rank, here
        self.device = of or torch.device("cpu")
        if size > 1 and self.device.type == "cuda":
            self.device = torch.device("cuda", local_rank)  # each has one of its own

    def share(self, rows: Sequence[T]) -> list[T]:
        """The rows of this process: every `size`-th, so that like lengths are dealt evenly if they stand together."""
        return list(rows[self.rank :: self.size])

    def stop(self, message: str) -> BaseException:
        """What to raise where every process comes to the same end: the first one says why, the others are silent."""
        return UserError(message) if self.rank == 0 else _lost(SAME_END)

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum each tensor over the processes, in place."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        start = 0
        for tensor in tensors:
            tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()

    def of_first(self, value: T) -> T:
        """What the first process has. Each waits for it."""
        if self.size == 1:
            return value
        values: list[Any] = [value if self.rank == 0 else None]
        distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]  # type: ignore[no-any-return]

    def of_all(self, value: T) -> list[T]:
        """What each process has, in the order of their ranks. Each waits for all."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def agree(self, inputs: Mapping[str, str]) -> None:
        """See that all processes have the inputs of the first one.

        Raises:
            UserError: this host has others; the message names them.
        """
        of_first = self.of_first(dict(inputs))
        different = sorted(key for key in of_first.keys() | inputs.keys() if of_first.get(key) != inputs.get(key))
        if any(self.of_all(bool(different))):
            if not different:
                raise _lost()
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise UserError(
                f"{', '.join(different[:3])}{more}: not as on the first host ({socket.gethostname()} has process "
                f"{self.rank}); all hosts want the same code, params, inputs and versions"
            )


@contextmanager
def joined(
    processes: int | None, device: torch.device, what: str, *, patience: timedelta = PATIENCE
) -> Iterator[Group]:
    """The group that this process was started in; alone, if it was started by itself.

    `processes` is how many there have to be, as `what` says; None: as many as there are. `patience` is how long one
    may wait for another that lives; one that is dead is noticed at once, and a host without network after a minute.

    Raises:
        UserError: there are more or fewer, or fewer GPUs on this host than processes.
    """
    if not is_in_a_group():
        yield Group(of=device)
        return
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank:
        os.environ.setdefault(RANK, str(rank))  # the first one says that a signal came
    try:
        if processes not in (None, size):
            raise UserError(
                f"{what} is {processes}, and {size} processes were started (WORLD_SIZE); make them the same"
            )
        told = os.environ.get("LOCAL_WORLD_SIZE")  # not every program that starts a group says so
        here = int(told or local_rank + 1)
        if device.type == "cuda" and torch.cuda.device_count() < here:
            raise UserError(
                f"{what}: {here} processes on this host want a GPU each, and torch sees {torch.cuda.device_count()}"
            )
        group = Group(rank, size, local_rank, here, of=device)
        if size == 1:
            yield group
            return
        several_hosts = told not in (None, str(size))
        alive = nullcontext() if told == str(size) else pulse(rank, size)
        with alive, _meeting(group, patience, several_hosts=several_hosts):
            yield group
    except UserError:
        if local_rank:
            time.sleep(SAME_END)  # the first process of this host comes to the same end, and says so for all
        raise


@contextmanager
def _meeting(group: Group, patience: timedelta, *, several_hosts: bool) -> Iterator[None]:
    on = group.device
    if on.type == "cuda":
        torch.cuda.set_device(on)
    _use_the_network_of(os.environ["MASTER_ADDR"], several_hosts=several_hosts)
    try:
        distributed.init_process_group(
            "nccl" if on.type == "cuda" else "gloo", timeout=patience, device_id=on if on.type == "cuda" else None
        )
        yield
        group.of_first(None)  # no process ends well before the first one has
        distributed.destroy_process_group()
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise _lost() from None  # of which the processes that are left hear in many words


def _lost(seconds: float = WORD) -> BaseException:
    """What to raise where another process has come to an end, or is about to: it says why, if it can."""
    if RANK not in os.environ:
        return UserError(FAILED)
    time.sleep(seconds)
    return SystemExit(LOST)


def _use_the_network_of(address: str, *, several_hosts: bool) -> None:
    """Let the processes talk over the network on which the first one is reached, and over no other.

    Left alone, gloo takes the one that this host's own name leads to, which often is none that others reach; NCCL
    chooses by itself.

    Raises:
        UserError: there are other hosts, and the address is one of this host alone.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # sends nothing: it only chooses the way
            own = str(probe.getsockname()[0]).split("%")[0]
    except OSError:
        return
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.split("%")[0] == own for one in addresses):
            is_loopback = ipaddress.ip_address(own).is_loopback
            if is_loopback and several_hosts:
                raise UserError(
                    f"{address} (MASTER_ADDR) is an address that other hosts cannot reach; "
                    "give the first host's address on the network that joins them"
                )
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            if is_loopback:
                os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
