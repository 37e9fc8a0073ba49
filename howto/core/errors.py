"""Errors for people: one line that says what is wrong, where, and what to do, and a non-zero exit status."""

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

from howto.core.process import NOTHING_KEPT, Terminated, report_stopped_by, watch_signals

P = ParamSpec("P")

OUT_OF_MEMORY = "out of memory; lower the batch size in params.yaml, or free memory"
OUT_OF_MEMORY_IN_TORCH = ("out of memory", "can't allocate memory")
NO_MEMORY_FOR_A_LIBRARY = ("failed to map segment", "annot allocate memory")  # the dynamic linker's words


class UserError(Exception):
    """Something outside the code is wrong. The message is one line: what, where, and what to do."""


def reports_errors(main: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command: report a mistake of a user or a machine as one line on stderr, and exit with status 1.

    Any other exception is a bug of this project and keeps its stack trace. Ctrl-C exits with 130 and SIGTERM with
    143, within seconds. If DVC is killed, its stage ends too.
    """

    @functools.wraps(main)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            watch_signals()
            main(*arguments, **options)
            sys.stdout.flush()
        except UserError as error:
            _end(str(error), 1)
        except KeyboardInterrupt:
            report_stopped_by("the keyboard")
            sys.exit(130)
        except Terminated:
            report_stopped_by("SIGTERM")
            sys.exit(143)
        except BrokenPipeError:  # as in `... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except MemoryError:
            _end(OUT_OF_MEMORY, 1)
        except ImportError as error:
            if not any(words in str(error) for words in NO_MEMORY_FOR_A_LIBRARY):
                raise
            print(f"error: {OUT_OF_MEMORY}", file=sys.stderr, flush=True)
            os._exit(1)  # the exit handlers of libraries print stack traces if there is no memory
        except OSError as error:
            _end(_system_error(error), 1)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            _end(f"out of memory ({one_line(error)}); lower micro_batch_size or batch_size in params.yaml", 1)
        except Exception as error:  # safetensors, for one, raises errors of its own when it writes
            if os.strerror(errno.ENOSPC) not in str(error):
                raise
            _end(f"the disk is full; free space and run again ({NOTHING_KEPT})", 1)

    return run


def is_out_of_memory(error: Exception) -> bool:
    """Return whether Python, or torch on a CPU or a GPU, ran out of memory."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY_IN_TORCH)


def one_line(error: BaseException) -> str:
    """Return the message of a library's error as a part of one line, or its type if it has no message."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _system_error(error: OSError) -> str:
    """Return the message for an error of the operating system. Raise `error` again if it has no message here."""
    where = error.filename2 or error.filename or "a file"  # filename2 is the target of a copy
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}: the disk is full; free space and run again ({NOTHING_KEPT})"
    if error.errno == errno.ENOMEM:
        return OUT_OF_MEMORY
    if isinstance(error, PermissionError):
        return f"{where}: no permission; change the owner or mode of the file"
    if error.errno == errno.EROFS:
        return f"{where}: the file system is read-only; run from a writable folder"
    raise error


def _end(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
