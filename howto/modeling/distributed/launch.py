"""A stage as several processes, which torchrun starts on this host; on other hosts the stage starts its own.

Which hosts take part, and where they meet, is said in torchrun's own words: PET_NNODES, PET_NODE_RANK,
PET_MASTER_ADDR, PET_MASTER_PORT, and the other options of `torchrun --help` in the same way.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from howto.core.errors import UserError
from howto.core.process import RANK

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

JOINED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun gives a process
HOSTS = "PET_NNODES"
NUMBERS = (HOSTS, "PET_NODE_RANK", "PET_MASTER_PORT")
LOST = 77  # the exit status of a process that has lost another one, and leaves it to others to say why
FAILED = "one of the processes has failed, here or on another host; nothing goes on without it"
AT_ONCE = "3"  # seconds from a signal until a process that is still there is killed


def is_in_a_group() -> bool:
    """Whether torchrun, or a program like it, has started this process as one of several.

    Raises:
        UserError: only a part of what such a program says is in the environment.
    """
    there = [name for name in JOINED if name in os.environ]
    if not {"RANK", "WORLD_SIZE"} & set(there):
        return False
    if missing := [name for name in JOINED if name not in there]:
        raise UserError(
            f"{', '.join(there)} in the environment, but not {', '.join(missing)}: torchrun sets them all; "
            "start the stage with it, or unset them"
        )
    return True


def hosts() -> int:
    """On how many hosts the stage runs, as torchrun's variable says; 1 without it.

    Raises:
        UserError: a variable is not a number.
    """
    for name in NUMBERS:
        if not os.environ.get(name, "0").isdecimal():
            raise UserError(f"{name} is {os.environ[name]!r} in the environment; a whole number is wanted")
    return int(os.environ.get(HOSTS, "1")) or 1


def on_this_host(processes: int, what: str) -> int:
    """How many of the processes run on each host; `what` says where their number stands.

    Raises:
        UserError: they cannot be dealt evenly to the hosts.
    """
    count = hosts()
    if processes % count:
        raise UserError(
            f"{what} is {processes}, which cannot be dealt evenly to {count} hosts ({HOSTS}); change one of them"
        )
    return processes // count


def launch(module: str, arguments: Sequence[str], count: int) -> None:
    """Run `python -m module` so many times on this host, and return when all have ended well.

    Raises:
        UserError: one has failed, or the hosts did not meet.
        SystemExit: one has failed, and has said why.
    """
    # What torchrun has to say of a failure, in log lines and stack traces, is said here in one line.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", AT_ONCE)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    alone = hosts() == 1
    options = ["--nproc-per-node", str(count), "--max-restarts", "0", "--log-dir", os.devnull]
    store, meet = _store_of_this_host() if alone else (None, [])
    wanted = run.parse_args([*options, *meet, "-m", module, *arguments])  # type: ignore[no-untyped-call]
    where = wanted.rdzv_endpoint or f"{wanted.master_addr}:{wanted.master_port or 29500}"
    if not alone:
        print(f"{module}: meets {hosts() - 1} other host(s) at {where}", flush=True)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    ended_by = None
    logging.disable(logging.CRITICAL)
    os.environ[RANK] = "torchrun's"  # the processes leave it to this one to say that a signal came, and end with it
    try:
        run.run(wanted)  # type: ignore[no-untyped-call]
    except SignalException as end:
        ended_by = end.sigval
    except ChildFailedError as error:
        if any(failure.exitcode == 1 for failure in error.failures.values()):
            raise SystemExit(1) from None  # it has said why
        raise UserError(FAILED + _killed([failure.exitcode for failure in error.failures.values()])) from None
    except (RuntimeError, ValueError, AssertionError, OSError) as error:
        raise UserError(f"torchrun: {module} could not be started at {where}: {_first_line(error)}") from None
    finally:
        del os.environ[RANK], store
        logging.disable(logging.NOTSET)
        for number, handler in before.items():
            signal.signal(number, handler)
    if ended_by is not None:
        signal.raise_signal(ended_by)  # now that all have ended: what it would have done at once


def _store_of_this_host() -> tuple[Store, list[str]]:
    """Where the processes of one host meet, which no other host can reach, and torchrun's options for it.

    By itself torchrun would listen on every network. It takes the store that this process already has at a port.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server(("127.0.0.1", 0))
    port = int(listener.getsockname()[1])
    store = TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        multi_tenant=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )
    return store, ["--nnodes", "1", "--node-rank", "0", "--master-addr", "127.0.0.1", "--master-port", str(port)]


def _killed(statuses: list[int]) -> str:
    """Who was killed, if somebody was."""
    numbers = sorted({-status for status in statuses if status < 0})
    return f" (killed by {', '.join(signal.Signals(number).name for number in numbers)})" if numbers else ""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
