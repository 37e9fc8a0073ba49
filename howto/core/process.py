"""Signals and orphans: a stage ends within seconds of Ctrl-C, SIGTERM, or the death of its DVC."""

import os
import signal
import sys
import threading
import time
from typing import Any

GRACE = 5.0  # seconds between a signal and a forced exit, for a process inside a long library call
POLL = 0.5  # seconds between two checks that DVC is alive
RANK = "HOWTO_RANK"  # set for processes that a stage starts; see modeling.distributed
NOTHING_KEPT = "nothing half-written was kept"


class Terminated(BaseException):
    """SIGTERM arrived, or DVC died."""


def exit_while_loading() -> None:
    """Let Ctrl-C and SIGTERM end this process at once, with one line, until `reports_errors` takes over."""

    def end(number: int, _: Any) -> None:
        report_stopped_by("the keyboard" if number == signal.SIGINT else "SIGTERM")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def watch_signals() -> None:
    """Let SIGTERM stop this process as Ctrl-C does, within GRACE seconds even inside a long library call."""
    if threading.current_thread() is not threading.main_thread():
        return

    def terminate(*_: Any) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # ignored in background jobs of shell scripts
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "win32":
        return
    # Python runs a signal handler only when a library call returns. The wakeup pipe gets the signal at once.
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=_force_exit, args=(read,), daemon=True).start()
    if {"DVC_STAGE", RANK} & os.environ.keys():
        threading.Thread(target=_end_with_parents, daemon=True).start()


def _force_exit(pipe: int) -> None:
    """Exit GRACE seconds after SIGINT or SIGTERM, unless the process has ended by then."""
    while True:
        number = os.read(pipe, 1)[0]
        if number in (signal.SIGINT, signal.SIGTERM):
            time.sleep(GRACE)
            report_stopped_by(signal.Signals(number).name)
            os._exit(128 + number)


def _end_with_parents() -> None:
    """Stop this process when DVC, its shell, or the first process of a group ends, so that no orphan keeps working."""
    import psutil

    me = psutil.Process()
    parents = me.parents()
    ours = next((n for n, one in enumerate(parents) if is_dvc(one)), 0 if RANK in os.environ else _starter(parents))
    while ours < len(parents) and all(_is_alive(one) for one in parents[: ours + 1]):
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGTERM)


def _starter(parents: list[Any]) -> int:
    """Return the index of the process that started this stage, if none of `parents` has DVC's name; -1 if unknown.

    DVC puts the stage's name into the environment of its shell, so the first parent without that name started it. If
    that parent is in another process group, DVC was killed before this check, and the parent is only the one that
    adopts orphans. The index is then beyond the list.
    """
    import psutil

    try:
        for number, one in enumerate(parents):
            if os.getpgid(one.pid) != os.getpgid(0):
                break
            if "DVC_STAGE" not in one.environ():
                return number
        return len(parents)
    except (psutil.NoSuchProcess, ProcessLookupError):  # it ended between two calls
        return len(parents)
    except (psutil.Error, PermissionError):
        return -1


def _is_alive(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:  # it ended between two calls
        return False


def is_dvc(process: Any) -> bool:
    """Return whether the process is DVC, by its name."""
    import psutil

    try:
        return any(os.path.basename(part) == "dvc" for part in process.cmdline()[:3])  # noqa: PTH119
    except psutil.Error:
        return False


def report_stopped_by(cause: str) -> None:
    """Print why the process ends. In a group of processes only the first one prints."""
    if RANK not in os.environ:
        print(f"error: stopped by {cause}; {NOTHING_KEPT}", file=sys.stderr, flush=True)
