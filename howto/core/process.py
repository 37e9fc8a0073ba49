"""Signals, and a parent that dies: a stage ends within seconds of either."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

GRACE = 5.0  # seconds after a signal until a process that is deep in a library ends anyway
LOOK = 0.5  # seconds between two looks at whether DVC is still there
RANK = "HOWTO_RANK"  # of a process that another one started; see `process_group`
NOTHING_KEPT = "nothing half-written was kept"


class Terminated(BaseException):
    """SIGTERM came, or DVC has gone."""


def ends_while_loading() -> None:
    """Let Ctrl-C and SIGTERM end this process at once and with one line, until `reports_errors` takes over."""

    def end(number: int, _: Any) -> None:
        say_stopped_by("the keyboard" if number == signal.SIGINT else "SIGTERM")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def watch_for_the_end() -> None:
    """Let SIGTERM stop this process as Ctrl-C does, and neither wait for a library's long computation."""
    if threading.current_thread() is not threading.main_thread():
        return

    def terminate(*_: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in the background of a shell's script
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "win32":
        return
    # Python runs a handler when a call into a library returns. Its number comes through a pipe at once.
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_end_soon, args=(read,), daemon=True).start()
    if {"DVC_STAGE", RANK} & os.environ.keys():
        threading.Thread(target=_end_with_those_above, daemon=True).start()


def _end_soon(pipe: int) -> None:
    """End the process a while after a signal that ends it, if it is still there."""
    while True:
        number = os.read(pipe, 1)[0]
        if number in (signal.SIGINT, signal.SIGTERM):
            time.sleep(GRACE)
            say_stopped_by(signal.Signals(number).name)
            os._exit(128 + number)


def _end_with_those_above() -> None:
    """Stop this process when DVC, its shell, or the first of a group has ended: it would go on unseen."""
    import psutil

    me = psutil.Process()
    above = me.parents()
    ours = next((n for n, one in enumerate(above) if is_dvc(one)), 0 if RANK in os.environ else _starter(above))
    while ours < len(above) and all(_is_there(one) for one in above[: ours + 1]):
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


def _starter(above: list[Any]) -> int:
    """Which of the processes above started this stage, where none of them has DVC's name; -1 if that cannot be told.

    It is the first whose environment DVC has not given the stage's name, as it gives it to its shell. Where that one
    is in another process group, DVC was killed before this process could look, and above is who takes orphans: the
    number is then that of no process.
    """
    import psutil

    try:
        for number, one in enumerate(above):
            if os.getpgid(one.pid) != os.getpgid(0):
                break
            if "DVC_STAGE" not in one.environ():
                return number
        return len(above)
    except (psutil.NoSuchProcess, ProcessLookupError):  # it went between two questions
        return len(above)
    except (psutil.Error, PermissionError):
        return -1


def _is_there(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:  # it went between the two questions
        return False


def is_dvc(process: Any) -> bool:
    """Whether the process has DVC's name."""
    import psutil

    try:
        return any(os.path.basename(part) == "dvc" for part in process.cmdline()[:3])  # noqa: PTH119
    except psutil.Error:
        return False


def say_stopped_by(whom: str) -> None:
    """Print why the process ends, unless another process of the group says it for all."""
    if RANK not in os.environ:  # else the first process of the group says it for all
        print(f"error: stopped by {whom}; {NOTHING_KEPT}", file=sys.stderr, flush=True)
