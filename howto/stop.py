"""How the pipeline stops on a mistake that is not its own: one line, and a non-zero exit."""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable


class Stop(Exception):
    """Something outside the code is wrong. The message says what, where, and what to do."""


def stops_cleanly(main: Callable[[], None]) -> Callable[[], None]:
    """Turn the mistakes of a user and of a machine into one line on stderr and exit status 1.

    Every other exception is a bug of this project and keeps its stack trace. Ctrl-C exits with 130.
    """

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
            sys.stdout.flush()
        except Stop as stop:
            _end(str(stop), 1)
        except KeyboardInterrupt:
            _end("stopped by the keyboard; nothing half-written was kept", 130)
        except BrokenPipeError:  # the reader of a pipe has seen enough (`... | head`)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except MemoryError:
            _end("out of memory; lower the batch size in params.yaml, or free memory", 1)
        except OSError as error:
            _end(_of_the_machine(error), 1)
        except RuntimeError as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
            first = str(error).splitlines()[0]
            _end(f"out of memory ({first}); lower micro_batch_size or batch_size in params.yaml", 1)

    return run


def _of_the_machine(error: OSError) -> str:
    """The line for an error that the operating system gave; raises `error` again if it is none of the known ones."""
    where = error.filename2 or error.filename or "a file"  # the second is where a copy goes to
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{where}: the disk is full; free space and run again (nothing half-written was kept)"
    if isinstance(error, PermissionError):
        return f"{where}: no permission; change the owner or the mode of the file"
    if error.errno == errno.EROFS:
        return f"{where}: the file system is read-only; run from a folder that can be written"
    raise error


def _end(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
