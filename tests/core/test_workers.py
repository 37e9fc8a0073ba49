"""Results come back in order, and no worker outlives its parent."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from howto.core.errors import UserError
from howto.core.workers import QUEUE_PER_WORKER, map_in_order
from tests.conftest import ROOT


def square(number: int) -> int:
    return number * number


def fail_at_seven(number: int) -> int:
    if number == 7:
        raise UserError("seven: no good")
    return number


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_results_come_in_the_order_of_the_items(processes: int) -> None:
    assert list(map_in_order(square, range(40), processes)) == [n * n for n in range(40)]


@pytest.mark.parametrize("processes", [1, 3])
def test_an_error_is_raised_at_its_place(processes: int) -> None:
    seen = []
    with pytest.raises(UserError, match="seven: no good"):
        for result in map_in_order(fail_at_seven, range(40), processes):
            seen.append(result)
    assert seen == list(range(7))


def test_few_items_are_in_progress_at_a_time() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield number

    results = map_in_order(square, items(), 2)
    assert next(results) == 0
    assert taken <= 2 * QUEUE_PER_WORKER + 1
    results.close()  # type: ignore[attr-defined]


PARENT = """
import sys, time
from multiprocessing import parent_process
from howto.core.workers import map_in_order
def work(seconds):
    if parent_process():
        time.sleep(seconds)
def main():
    results = map_in_order(work, [0, 0, 600, 600, 600, 600], 3)
    next(results), next(results)
    print("ready", flush=True)
    next(results)
if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT, encoding="utf-8")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert len(children) >= 2
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
