"""The processes that share the work of a stage, on one host or several.

In training each computes a share of every step's rows, and gradients are summed. A step's loss is divided by the
response tokens of all its rows before the backward pass. So the sum over processes is the gradient of one process that
has all rows, whatever the shares are.
"""

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
from howto.modeling.distributed.heartbeat import heartbeat
from howto.modeling.distributed.launch import PEER_FAILED, PEER_FAILED_STATUS, in_process_group

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)  # for a process that is alive, but does not reach the end of a step
# Seconds that a process leaves to others before it ends. torchrun ends it earlier once the other one has ended.
WAIT_FOR_PEER = 3.0  # if another process failed and prints why
WAIT_FOR_FIRST = 20.0  # if all processes fail in the same way, and the first prints why


class ProcessGroup:
    """This process and those that work with it; by default one process by itself."""

    def __init__(
        self, device: torch.device, rank: int = 0, size: int = 1, local_rank: int = 0, processes_on_host: int = 1
    ) -> None:
        """On GPUs, each of several processes gets the one that `local_rank`, its number on this host, gives."""
        self.rank, self.size, self.local_rank, self.processes_on_host = rank, size, local_rank, processes_on_host
        self.device = torch.device("cuda", local_rank) if size > 1 and device.type == "cuda" else device

    def shard(self, rows: Sequence[T]) -> list[T]:
        """Return this process's rows: every `size`-th, so that sorted rows are shared evenly."""
        return list(rows[self.rank :: self.size])

    def common_error(self, message: str) -> BaseException:
        """Return what to raise where every process fails in the same way: only the first prints the message."""
        return UserError(message) if self.rank == 0 else _peer_failed(WAIT_FOR_FIRST)

    def all_reduce(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum each tensor over the processes, in place."""
        if self.size > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(flat)
            totals = torch.split(flat, [tensor.numel() for tensor in tensors])
            for tensor, total in zip(tensors, totals, strict=True):
                tensor.copy_(total.view_as(tensor))

    def broadcast(self, value: T) -> T:
        """Return the first process's value; each process waits for it."""
        values: list[Any] = [value if self.rank == 0 else None]
        if self.size > 1:
            distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]  # type: ignore[no-any-return]

    def all_gather(self, value: T) -> list[T]:
        """Return each process's value by rank; each process waits for all."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            distributed.all_gather_object(values, value)
        return values

    def check_same(self, inputs: Mapping[str, str]) -> None:
        """Raise UserError if the inputs of this process are not those of the first one; the message names them."""
        all_inputs = self.all_gather(dict(inputs))
        first = all_inputs[0]
        different = sorted(key for key in first.keys() | inputs.keys() if first.get(key) != inputs.get(key))
        if different:
            more = f" and {len(different) - 3} more" if len(different) > 3 else ""
            raise UserError(
                f"{', '.join(different[:3])}{more}: not as on the first host ({socket.gethostname()} has process "
                f"{self.rank}). Use the same code, params, inputs and versions on all hosts."
            )
        if any(other != first for other in all_inputs):
            raise _peer_failed()


@contextmanager
def join_process_group(
    processes: int | None, device: torch.device, key: str, *, timeout: timedelta = TIMEOUT
) -> Iterator[ProcessGroup]:
    """Join the group that this process was started in, or yield a group of one if it was started by itself.

    `processes` is the expected number, which the param or option `key` gives; None accepts any. `timeout` is for a
    process that is alive; a dead one is noticed at once, a host without a network after a minute.

    Raise UserError if the number of processes is another one, or this host has fewer GPUs than processes.
    """
    if not in_process_group():
        yield ProcessGroup(device)
        return
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank:
        os.environ.setdefault(RANK, str(rank))  # the first process reports a signal
    local_size = os.environ.get("LOCAL_WORLD_SIZE")  # not every program that starts a group sets it
    on_host = int(local_size or local_rank + 1)
    group = ProcessGroup(device, rank, size, local_rank, on_host)
    try:
        if processes not in (None, size):
            raise UserError(f"{key}: expected {size}, the number of processes started (WORLD_SIZE), got {processes}")
        if device.type == "cuda" and (gpus := torch.cuda.device_count()) < on_host:
            raise UserError(f"{key}: expected a GPU for each of {on_host} processes on this host, got {gpus} GPUs")
        if size == 1:
            yield group
            return
        beating = nullcontext() if local_size == str(size) else heartbeat(rank, size)
        with beating, _connected(group, timeout, several_hosts=local_size not in (None, str(size))):
            yield group
    except UserError:
        if local_rank:
            time.sleep(WAIT_FOR_FIRST)  # the first process of this host fails in the same way, and prints why
        raise


@contextmanager
def _connected(group: ProcessGroup, timeout: timedelta, *, several_hosts: bool) -> Iterator[None]:
    is_cuda = group.device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(group.device)
    _choose_network(os.environ["MASTER_ADDR"], several_hosts=several_hosts)
    try:
        backend = "nccl" if is_cuda else "gloo"
        distributed.init_process_group(backend, timeout=timeout, device_id=group.device if is_cuda else None)
        yield
        group.broadcast(None)  # no process ends before the first one has succeeded
        distributed.destroy_process_group()
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise _peer_failed() from None


def _peer_failed(seconds: float = WAIT_FOR_PEER) -> BaseException:
    """Return what to raise if another process has failed, or is about to: that one prints why, if it can."""
    if RANK not in os.environ:
        return UserError(PEER_FAILED)
    time.sleep(seconds)
    return SystemExit(PEER_FAILED_STATUS)


def _choose_network(master_address: str, *, several_hosts: bool) -> None:
    """Let the processes communicate only over the network on which the first one is reached.

    By default gloo uses the network of this host's own name, which others often cannot reach; NCCL chooses by itself.
    Raise UserError if there are other hosts and they cannot reach the address.
    """
    try:
        family, _, _, _, target = socket.getaddrinfo(master_address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # chooses a network, and sends nothing
            own = str(probe.getsockname()[0]).split("%")[0]
    except OSError:
        return
    is_loopback = ipaddress.ip_address(own).is_loopback
    if is_loopback and several_hosts:
        raise UserError(
            f"MASTER_ADDR: expected an address that other hosts can reach, got {master_address}. Give the first host's "
            "address on the network that joins them."
        )
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.split("%")[0] == own for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            if is_loopback:
                os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
