"""A mistake is one line and a non-zero exit status; a bug keeps its stack trace; SIGTERM ends any call."""

import errno
import os
import sys

import psutil
import pytest
from safetensors import SafetensorError

from howto.core.errors import UserError, reports_errors
from tests.conftest import ROOT, call
from tests.support.processes import start, wait_until


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (UserError("a.txt:3: wrong"), 1, "error: a.txt:3: wrong\n"),
        (KeyboardInterrupt(), 130, "stopped by the keyboard"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "lower micro_batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), 1, "lower micro_batch_size"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "b.txt"), 1, "b.txt: no permission"),
        (OSError(errno.ENOSPC, "full", "from.txt", None, "to.txt"), 1, "error: to.txt: the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 1, "error: the disk is full"),
    ],
)
def test_a_mistake_is_one_line(
    raised: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @reports_errors
    def main() -> None:
        raise raised

    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == status and message in error and error.count("\n") == 1


@pytest.mark.parametrize("bug", [ValueError("a bug"), RuntimeError("a bug"), OSError("a bug")])
def test_a_bug_keeps_its_stack_trace(bug: Exception) -> None:
    @reports_errors
    def main() -> None:
        raise bug

    with pytest.raises(type(bug), match="a bug"):
        main()


STUCK = """
import hashlib
from howto.core.errors import reports_errors
@reports_errors
def main():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**9)  # one long call into C: Python runs no handler before it returns
main()
"""


def test_a_process_inside_a_long_library_call_ends_within_seconds_of_sigterm() -> None:
    with start(ROOT, sys.executable, "-c", STUCK) as process:
        wait_until(lambda: psutil.Process(process.pid).cpu_times().user > 1, process)
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped by SIGTERM" in errors


CROWDED = """
import resource
from howto.core.errors import reports_errors
@reports_errors
def main():
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * resource.getpagesize() + (60 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    import torch  # noqa: F401
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc and address-space limit")
def test_a_library_that_does_not_fit_into_memory_is_one_line() -> None:
    done = call(ROOT, sys.executable, "-c", CROWDED)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: out of memory") and done.stderr.count("\n") == 1
