"""Signs of life that processes on several hosts give each other.

Where a process ends, the operating system tells those that it was connected with. Where a host loses its power or its
network nobody tells, and a process that waits for another one would wait for very long.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from torch.distributed.rendezvous import rendezvous

from howto.core.process import RANK
from howto.modeling.distributed.launch import FAILED, LOST

BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds after which a process that gave none is given up
START = 600.0  # seconds that it may take to the first one


@contextmanager
def pulse(rank: int, size: int) -> Iterator[None]:
    """While the block runs, end this process if another one of the group has been silent for long."""
    ended = threading.Event()
    heard = [time.monotonic() + START - SILENCE]
    # One thread may be stuck in a call that nobody answers, so another one looks at the time.
    for work in (_beat, _watch):
        threading.Thread(target=work, args=(ended, heard, rank, size), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _beat(ended: threading.Event, heard: list[float], rank: int, size: int) -> None:
    """Give signs, and note in `heard` when each of the others had last given a new one."""
    last: dict[str, tuple[bytes, float]] = {}
    count = 0
    while not ended.is_set():
        try:
            # A connection of its own: the group's may be waiting for something.
            store, _, _ = next(rendezvous("env://", rank, size, timeout=timedelta(seconds=SILENCE)))
            others = [f"pulse/{number}" for number in range(size) if number != rank]
            while True:
                count += 1
                store.set(f"pulse/{rank}", str(count))
                now = time.monotonic()
                for name, value in zip(others, store.multi_get(others), strict=True):
                    if name not in last or last[name][0] != value:
                        last[name] = value, now
                heard[0] = min(moment for _, moment in last.values())
                if ended.wait(BEAT):
                    return
        except RuntimeError:  # no answer: another try, until the time is over
            ended.wait(1.0)


def _watch(ended: threading.Event, heard: list[float], _: int, __: int) -> None:
    while not ended.wait(1.0):
        if time.monotonic() - heard[0] > SILENCE:
            if RANK not in os.environ:  # nobody is there to say it for this process
                print(f"error: {FAILED}", file=sys.stderr, flush=True)
            os._exit(LOST)
