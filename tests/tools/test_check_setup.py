"""What the doctor finds of the set-up: Python, packages, params.yaml, git, DVC and its locks."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from howto.tools.check_setup import (
    check_folder,
    check_git_and_dvc,
    check_locks,
    check_packages,
    check_params,
    check_python,
)
from howto.tools.finding import OK, PROBLEM, WARNING, Asked, Finding
from tests.conftest import run_stage
from tests.support.doctoring import ask, only, replace
from tests.support.in_process import edit_params


def test_a_python_that_is_too_old_and_one_that_will_do(examined: Path) -> None:
    assert [finding.level for finding in ask(check_python)].count(PROBLEM) == 0
    replace("pyproject.toml", ">=3.11", ">=9.7")
    only(check_python, PROBLEM, "and 9.7 is needed", "make PYTHON=python9.7")


def test_packages_that_are_not_as_locked(examined: Path) -> None:
    only(check_packages, OK, "as in requirements.lock")
    replace("requirements.lock", "numpy==", "numpy==0.1.")
    replace("requirements.lock", "rich==", "rich==0.1.")
    only(check_packages, WARNING, "numpy 2", "(lock: 0.1.", "rich 1", "pip install -r requirements.lock")
    (examined / ".venv").mkdir()
    (examined / ".venv/.installed").touch()
    with (examined / "requirements.lock").open("a", encoding="utf-8") as file:
        file.write("no-such-package-of-ours==1.0\n")
    only(check_packages, PROBLEM, "not installed: no-such-package-of-ours")
    Path("requirements.lock").unlink()
    only(check_packages, PROBLEM, "cannot be read")


def test_params(examined: Path) -> None:
    only(check_params, OK, "the active profile is smollm2")
    edit_params(examined, "r: 8  ", "rr: 8 ")
    (finding,) = check_params(Asked())
    assert finding.level == PROBLEM and "train.lora.rr: unknown key; is r meant?" in finding.said


def test_git_and_dvc(examined: Path) -> None:
    only(check_git_and_dvc, PROBLEM, "git", "in no repository", "git init")
    subprocess.run(["git", "init", "-q"], check=True)
    assert not any(finding.level == PROBLEM for finding in ask(check_git_and_dvc))
    Path(".dvc/config").unlink()
    only(check_git_and_dvc, PROBLEM, "no .dvc/config", "dvc init")


@pytest.mark.parametrize(
    ("text", "level", "said"),
    [
        ("<<<<<<< HEAD\nstages: {}\n=======\n", PROBLEM, "a merge left its conflict markers in it -> git checkout"),
        ("stages: [\n", WARNING, "damaged, and `dvc repro` will not start -> `make run` mends it"),
        ("", WARNING, "damaged, and `dvc repro` will not start -> `make run` mends it"),
    ],
)
def test_a_damaged_dvc_lock(examined: Path, text: str, level: str, said: str) -> None:
    only(check_locks_of_runs, OK, "dvc.lock", "7 stages")
    Path("dvc.lock").write_text(text, encoding="utf-8")
    only(check_locks, level, said)


def check_locks_of_runs(asked: Asked) -> list[Finding]:
    return [finding for finding in check_locks(asked) if finding.what == "dvc.lock"]


def test_locks_of_a_dvc_that_runs_and_of_one_that_died(examined: Path) -> None:
    folder = examined / ".dvc/tmp"
    folder.mkdir()
    assert [finding.level for finding in ask(check_locks)] == [OK, OK]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid, said in ((gone.pid, "which is gone"), (os.getpid(), "`dvc repro` is running here")):
        held = {"write": {"/data/raw": {"pid": pid, "cmd": "dvc repro"}}, "read": {}}
        (folder / "rwlock").write_text(json.dumps(held), encoding="utf-8")
        only(check_locks, WARNING, said)
    os.utime(folder / "rwlock", (1e9, 1e9))  # long before this process began
    only(check_locks, WARNING, f"names process {os.getpid()}, which was killed", "`howto recover`")
    (folder / "rwlock").write_text('{"write": {', encoding="utf-8")  # killed while it wrote
    only(check_locks, WARNING, "damaged, and `dvc repro` will not start", "`howto recover`")
    (folder / "rwlock").unlink()
    with (folder / "lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        only(check_locks, WARNING, "a DVC is running here")
    assert [finding.level for finding in ask(check_locks)] == [OK, OK]


def test_a_damaged_rwlock_does_stop_dvc(examined: Path) -> None:
    """What the doctor warns of is so, and what it advises mends it."""
    subprocess.run(["git", "init", "-q"], check=True)
    Path("dvc.yaml").write_text("stages: {make: {cmd: echo 1 > made, outs: [made]}}\n", encoding="utf-8")
    Path("dvc.lock").unlink()
    (examined / ".dvc/tmp").mkdir()
    (examined / ".dvc/tmp/rwlock").write_text("", encoding="utf-8")
    dvc = [str(Path(sys.executable).with_name("dvc")), "repro"]
    (finding,) = (f for f in ask(check_locks) if f.level == WARNING)
    assert "rwlock" in subprocess.run(dvc, capture_output=True, text=True, check=False).stderr.lower()
    assert "`howto recover`" in finding.to_do
    assert run_stage(examined, "howto", "recover").returncode == 0
    assert subprocess.run(dvc, capture_output=True, text=True, check=False).returncode == 0


def test_a_folder_that_cannot_be_written(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(
        check_folder,
        OK,
        "can be written",
        "copy" if "reflinks: DVC's cache takes no" not in str(ask(check_folder)) else "",
    )
    with (examined / ".dvc/config").open("a", encoding="utf-8") as file:
        file.write("[cache]\n    type = hardlink\n")
    only(check_folder, OK, "outputs are links into the cache")
    monkeypatch.chdir("/sys")
    assert check_folder(Asked())[0].level == PROBLEM
