"""How the pipeline stops on a mistake that is not its own: one line, and a non-zero exit."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

from howto.core.process import NOTHING_KEPT, Terminated, say_stopped_by, watch_for_the_end

P = ParamSpec("P")

OUT_OF_MEMORY = "out of memory; lower the batch size in params.yaml, or free memory"
OUT_OF_MEMORY_IN_TORCH = ("out of memory", "can't allocate memory")
NO_ROOM_FOR_A_LIBRARY = ("failed to map segment", "annot allocate memory")  # what the linker says


class UserError(Exception):
    """Something outside the code is wrong. The message says what, where, and what to do."""


def reports_errors(main: Callable[P, None]) -> Callable[P, None]:
    """Turn the mistakes of a user and of a machine into one line on stderr and exit status 1.

    Every other exception is a bug of this project and keeps its stack trace. Ctrl-C exits with 130,
    SIGTERM with 143, both within seconds; and so does a stage whose DVC has been killed.
    """

    @functools.wraps(main)
    def run(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            watch_for_the_end()
            main(*arguments, **options)
            sys.stdout.flush()
        except UserError as stop:
            _end(str(stop), 1)
        except KeyboardInterrupt:
            say_stopped_by("the keyboard")
            sys.exit(130)
        except Terminated:
            say_stopped_by("SIGTERM")
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


def _end(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
