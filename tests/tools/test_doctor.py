"""The doctor's command: what would stop a run is found before it, on one screen, with what to do."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_stage
from tests.support.doctoring import closed_port, remote
from tests.support.in_process import edit_params


def test_all_is_well_in_a_finished_project(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    done = run_stage(examined, "howto", "doctor")
    assert done.returncode == 0 and done.stderr == "", done
    assert done.stdout.splitlines()[-1].endswith("this machine can run the active profile")
    assert len(done.stdout.splitlines()) < 25, "one screen"
    edit_params(examined, "r: 8  ", "rr: 8 ")
    done = run_stage(examined, "howto", "doctor")
    assert done.returncode == 1 and "1 problem, " in done.stdout and "a run would not get through" in done.stdout
    edit_params(examined, "rr: 8 ", "r: 8  ")
    remote(f"http://127.0.0.1:{closed_port()}/store")
    done = run_stage(examined, "howto", "doctor")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("a run would get through, `make push` and `make pull` would not")


def test_without_any_package_it_says_what_it_can(examined: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "howto", "doctor"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    assert "are not there; what needs them was not checked -> `make run` installs them" in done.stdout
    assert "ok       Python: 3." in done.stdout and "disk: " in done.stdout and "memory: " in done.stdout
    assert "params.yaml: could not be checked: No module named " in done.stdout
    assert done.returncode == 1, "git is asked for without any package too"
    assert "problem  git: this folder is in no repository" in done.stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_in_a_terminal_it_is_a_table_that_fits(examined: Path, columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "howto", "doctor"],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
    )  # fmt: skip
    os.close(theirs)
    said = bytearray()
    reader = threading.Thread(target=read_all, args=(ours, said))
    reader.start()
    assert process.wait(timeout=60) == 1
    reader.join()
    lines = said.decode().splitlines()
    assert max(map(len, lines)) <= columns
    assert any(line.lstrip().startswith("-> ") for line in lines), "what to do stands on a line of its own"
    assert len(lines) < 50, "one screen"


def read_all(end: int, said: bytearray) -> None:
    """Until the other end is closed, which Linux tells as an error."""
    try:
        while part := os.read(end, 4096):
            said += part
    except OSError:
        pass
    finally:
        os.close(end)
