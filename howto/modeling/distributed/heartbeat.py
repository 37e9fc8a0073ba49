"""Heartbeats between processes on several hosts.

If a process ends, the operating system tells its peers. If a host loses power or its network, no message comes, and the
other hosts would wait for very long.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed.rendezvous import rendezvous

from howto.core.process import RANK
from howto.modeling.distributed.launch import PEER_FAILED, PEER_FAILED_STATUS

INTERVAL = 5.0  # seconds between two heartbeats
TIMEOUT = 60.0  # seconds without a heartbeat until a process counts as lost
STARTUP_TIMEOUT = 600.0  # seconds until the first heartbeat


@contextmanager
def heartbeat(rank: int, size: int) -> Iterator[None]:
    """Send heartbeats while the block runs, and end this process if another one's stop."""
    stopped = threading.Event()
    last_heard = [time.monotonic() + STARTUP_TIMEOUT - TIMEOUT]  # of the process that was silent for longest
    # `_exchange` may hang in a call that gets no answer, so the clock is watched by another thread.
    for target, arguments in ((_exchange, (stopped, last_heard, rank, size)), (_watch, (stopped, last_heard))):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


def _exchange(stopped: threading.Event, last_heard: list[float], rank: int, size: int) -> None:
    """Count up a number in the store, and note when the numbers of the others last changed."""
    seen: dict[str, tuple[bytes, float]] = {}
    count = 0
    peers = [f"heartbeat/{number}" for number in range(size) if number != rank]
    while not stopped.is_set():
        try:
            # A connection of its own: the group's may be blocked.
            store, _, _ = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=TIMEOUT)))
            while True:
                count += 1
                store.set(f"heartbeat/{rank}", str(count))
                now = time.monotonic()
                for peer, value in zip(peers, store.multi_get(peers), strict=True):
                    if peer not in seen or seen[peer][0] != value:
                        seen[peer] = value, now
                last_heard[0] = min(moment for _, moment in seen.values())
                if stopped.wait(INTERVAL):
                    return
        except RuntimeError:  # no answer: try again until `_watch` ends the process
            stopped.wait(1.0)


def _watch(stopped: threading.Event, last_heard: list[float]) -> None:
    while not stopped.wait(1.0):
        if time.monotonic() - last_heard[0] > TIMEOUT:
            if RANK not in os.environ:  # else the process that started this one prints the line
                print(f"error: {PEER_FAILED}", file=sys.stderr, flush=True)
            os._exit(PEER_FAILED_STATUS)
