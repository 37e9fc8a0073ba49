"""Worker processes: results come in order, and the number of items in progress is bounded."""

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

MAX_WORKERS = 8  # more would wait for the one process that reads and writes
QUEUE_PER_WORKER = 6  # items taken before the first result is yielded


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_order(function: Callable[[T], R], items: Iterable[T], processes: int) -> Iterator[R]:
    """Yield `function(item)` for each item, in order, computed by so many processes including this one.

    There are at most MAX_WORKERS. This process computes an item itself whenever the others have enough to do, for
    instance while they start.
    """
    if processes < 2:
        yield from map(function, items)
        return
    processes = min(processes, MAX_WORKERS)
    others = processes - 1
    context = multiprocessing.get_context("spawn")  # forked libraries wait for threads that fork did not copy
    pending: deque[Future[R]] = deque()
    with ProcessPoolExecutor(others, context, _start_worker) as pool:
        try:
            for item in items:
                if sum(not one.done() for one in pending) < 2 * others:
                    pending.append(pool.submit(function, item))
                else:
                    pending.append(_done(function, item))
                while pending and (pending[0].done() or len(pending) > QUEUE_PER_WORKER * processes):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _done(function: Callable[[T], R], item: T) -> Future[R]:
    """Call the function now, and keep its result or exception until its turn."""
    done: Future[R] = Future()
    try:
        done.set_result(function(item))
    except Exception as error:
        done.set_exception(error)
    return done


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and exit when the parent has ended for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
