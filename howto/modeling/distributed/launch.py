"""Run a stage as several processes, which torchrun starts on this host. On other hosts the stage starts its own.

torchrun's own variables say which hosts take part and where they meet: PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR,
PET_MASTER_PORT, and any other option of `torchrun --help` in the same way.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from howto.core.errors import UserError, one_line
from howto.core.process import RANK

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

WORKER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torchrun sets them all
HOSTS = "PET_NNODES"
PEER_FAILED = "a process failed, on this host or another one, and all processes ended"
PEER_FAILED_STATUS = 77  # exit status of a process that lost another one, and leaves it to others to print why
SECONDS_TO_STOP = "3"  # after a signal, until a process that is still running is killed


def in_process_group() -> bool:
    """Return whether torchrun, or a program like it, started this process. Raise UserError if it set only some."""
    missing = [name for name in WORKER_VARIABLES if name not in os.environ]
    if {"RANK", "WORLD_SIZE"} <= set(missing):  # some machines set the others for all programs
        return False
    if missing:
        raise UserError(f"environment: expected {', '.join(missing)} beside RANK, got none. Start it with torchrun.")
    return True


def host_count() -> int:
    """Return the number of hosts that torchrun's variable gives, or 1. Raise UserError if it gives no number."""
    for name in (HOSTS, "PET_NODE_RANK", "PET_MASTER_PORT"):
        if not os.environ.get(name, "0").isdecimal():
            raise UserError(f"environment: {name}: expected a whole number, got {os.environ[name]!r}. Correct it.")
    return int(os.environ.get(HOSTS, "1")) or 1


def processes_per_host(processes: int, key: str) -> int:
    """Return the number of processes on each host, of a total that the param or option `key` gives.

    Raise UserError if the hosts would have different numbers.
    """
    count = host_count()
    if processes % count:
        raise UserError(f"{key}: expected a multiple of {count} hosts ({HOSTS}), got {processes}. Change one of them.")
    return processes // count


def launch(module: str, arguments: Sequence[str], count: int) -> None:
    """Run `count` processes of `python -m module` on this host, and return when all have succeeded.

    Raise UserError if a process failed or the hosts did not meet, and SystemExit if the process has printed why.
    """
    # torchrun reports a failure in log lines and stack traces. Here it is one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SECONDS_TO_STOP)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    hosts = host_count()
    options = ["--nproc-per-node", str(count), "--max-restarts", "0", "--log-dir", os.devnull]
    store, meeting_point = _local_store() if hosts == 1 else (None, [])
    config = run.parse_args([*options, *meeting_point, "-m", module, *arguments])  # type: ignore[no-untyped-call]
    address = config.rdzv_endpoint or f"{config.master_addr}:{config.master_port or 29500}"
    if hosts > 1:
        print(f"{module}: meets {hosts - 1} other host(s) at {address}", flush=True)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    received = None
    logging.disable(logging.CRITICAL)
    os.environ[RANK] = "torchrun's"  # the processes end with this one, and leave it to report a signal
    try:
        run.run(config)  # type: ignore[no-untyped-call]
    except SignalException as error:
        received = error.sigval
    except ChildFailedError as error:
        statuses = {failure.exitcode for failure in error.failures.values()}
        if 1 in statuses:
            raise SystemExit(1) from None  # the process has printed why
        signals = ", ".join(signal.Signals(-status).name for status in sorted(statuses) if status < 0)
        raise UserError(PEER_FAILED + (f" (killed by {signals})" if signals else "")) from None
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        raise UserError(f"torchrun: cannot start {module} at {address}: {one_line(error)}") from None
    finally:
        del os.environ[RANK], store
        logging.disable(logging.NOTSET)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received is not None:
        signal.raise_signal(received)  # all processes have ended, so this one may


def _local_store() -> tuple[Store, list[str]]:
    """Return a store that no other host can reach, and torchrun's options to use it; torchrun's own is reachable."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    server: dict[str, Any] = {"is_master": True, "multi_tenant": True, "wait_for_workers": False}
    store = TCPStore("127.0.0.1", port, **server, master_listen_fd=listener.detach())
    return store, ["--nnodes", "1", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", str(port)]
