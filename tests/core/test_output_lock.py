"""One process at a time makes an output, and a killed process blocks nobody."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from howto.core.errors import UserError
from howto.core.output_lock import output_lock
from tests.conftest import ROOT

HOLDS = """
import sys
from pathlib import Path
from howto.core.output_lock import output_lock
with output_lock(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.read()
"""


def holder(output: Path) -> subprocess.Popen[str]:
    """Return a process that holds the lock on `output` until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(output)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_a_second_process_stops_and_names_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howto.core.output_lock.PATIENCE", 0.2)
    output = tmp_path / "models" / "base"
    with holder(output) as first:
        with pytest.raises(UserError, match=f"base: process {first.pid} is making it"), output_lock(output):
            pass
        with output_lock(tmp_path / "models" / "adapter"):  # another output is free
            pass
        first.communicate("")
    with output_lock(output):
        pass
    assert list((tmp_path / "models").iterdir()) == []


def test_a_waiting_process_continues_when_the_first_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with holder(tmp_path / "base") as first:
        monkeypatch.setattr("time.sleep", lambda _: first.communicate(""))  # it sleeps only if it has to wait
        with output_lock(tmp_path / "base"):
            assert first.poll() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("howto.core.output_lock.PATIENCE", 0.0)
    with holder(tmp_path / "base") as first:
        first.send_signal(signal.SIGKILL)
    with output_lock(tmp_path / "base"):
        assert (tmp_path / ".base.lock").read_text(encoding="utf-8") == str(os.getpid())
