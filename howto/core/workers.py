"""Work shared among processes, with the results in order and a bounded number of items under way."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST = 8  # more would wait for the one process that reads and writes
AHEAD = 6  # items a process that may be taken before the first of them is yielded


def usable_cores() -> int:
    """The cores that this process may run on, at most MOST."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST)


def map_in_order(function: Callable[[T], R], items: Iterable[T], processes: int) -> Iterator[R]:
    """Yield `function(item)` for each item, computed by so many processes, of which this one is the first.

    It computes whenever the others have enough to do, so also while they start.
    """
    if processes < 2:
        yield from map(function, items)
        return
    others = processes - 1
    context = multiprocessing.get_context("spawn")  # after a fork, libraries wait for threads that were not copied
    under_way: deque[Future[R]] = deque()
    with ProcessPoolExecutor(others, context, _begin) as pool:
        try:
            for item in items:
                if sum(not one.done() for one in under_way) < 2 * others:
                    under_way.append(pool.submit(function, item))
                else:
                    under_way.append(_done(function, item))
                while under_way and (under_way[0].done() or len(under_way) > AHEAD * processes):
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _done(function: Callable[[T], R], item: T) -> Future[R]:
    """What the function returned or raised, kept until it is its turn."""
    done: Future[R] = Future()
    try:
        done.set_result(function(item))
    except Exception as error:
        done.set_exception(error)
    return done


def _begin() -> None:
    """Leave Ctrl-C to the parent, and end when it has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
