"""How the pipeline stops on a mistake that is not its own: one line, and a non-zero exit."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

GRACE = 5.0  # seconds after a signal until a process that is deep in a library ends anyway
LOOK = 0.5  # seconds between two looks at whether DVC is still there
RANK = "HOWTO_RANK"  # of a process that another one started; see `group`
NOTHING_KEPT = "nothing half-written was kept"
OUT_OF_MEMORY = "out of memory; lower the batch size in params.yaml, or free memory"
OUT_OF_MEMORY_IN_TORCH = ("out of memory", "can't allocate memory")
NO_ROOM_FOR_A_LIBRARY = ("failed to map segment", "annot allocate memory")  # what the linker says


class Stop(Exception):
    """Something outside the code is wrong. The message says what, where, and what to do."""


class _Terminated(BaseException):
    """SIGTERM came, or DVC has gone."""


def stops_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Turn the mistakes of a user and of a machine into one line on stderr and exit status 1.

    Every other exception is a bug of this project and keeps its stack trace. Ctrl-C exits with 130,
    SIGTERM with 143, both within seconds; and so does a stage whose DVC has been killed.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            _watch_for_the_end()
            main()
            sys.stdout.flush()
        except Stop as stop:
            _end(str(stop), 1)
        except KeyboardInterrupt:
            _say_stopped_by("the keyboard")
            sys.exit(130)
        except _Terminated:
            _say_stopped_by("SIGTERM")
            sys.exit(143)
        except BrokenPipeError:  # the reader of a pipe has seen enough (`... | head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except MemoryError:
            _end(OUT_OF_MEMORY, 1)
        except ImportError as error:
            if not any(words in str(error) for words in NO_ROOM_FOR_A_LIBRARY):
                raise
            print(f"error: {OUT_OF_MEMORY}", file=sys.stderr, flush=True)
            os._exit(1)  # what libraries do at the end, with no memory, fails with stack traces
        except OSError as error:
            _end(_of_the_machine(error), 1)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            first = str(error).splitlines()[0]
            _end(f"out of memory ({first}); lower micro_batch_size or batch_size in params.yaml", 1)
        except Exception as error:  # of a library that writes files in its own way, such as safetensors
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            _end(f"the disk is full; free space and run again ({NOTHING_KEPT})", 1)

    return run


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out: Python's, torch's on a CPU, or that of a GPU."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY_IN_TORCH)


def ends_while_loading() -> None:
    """Let Ctrl-C and SIGTERM end this process at once and with one line, until `stops_cleanly` takes over."""

    def end(number: int, _: Any) -> None:
        _say_stopped_by("the keyboard" if number == signal.SIGINT else "SIGTERM")
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def _watch_for_the_end() -> None:
    """Let SIGTERM stop this process as Ctrl-C does, and neither wait for a library's long computation."""
    if threading.current_thread() is not threading.main_thread():
        return

    def terminate(*_: Any) -> None:
        raise _Terminated

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
            _say_stopped_by(signal.Signals(number).name)
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


def _of_the_machine(error: OSError) -> str:
    """The line for an error that the operating system gave; raises `error` again if it is none of the known ones."""
    where = error.filename2 or error.filename or "a file"  # the second is where a copy goes to
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}: the disk is full; free space and run again ({NOTHING_KEPT})"
    if error.errno == errno.ENOMEM:
        return OUT_OF_MEMORY
    if isinstance(error, PermissionError):
        return f"{where}: no permission; change the owner or the mode of the file"
    if error.errno == errno.EROFS:
        return f"{where}: the file system is read-only; run from a folder that can be written"
    raise error


def _say_stopped_by(whom: str) -> None:
    if RANK not in os.environ:  # else the first process of the group says it for all
        print(f"error: stopped by {whom}; {NOTHING_KEPT}", file=sys.stderr, flush=True)


def _end(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
