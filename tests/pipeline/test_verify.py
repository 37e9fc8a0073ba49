"""HEAD is run again in a clone; an output with another hash is reported with the stage where the difference begins."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.conftest import ENVIRONMENT, ROOT, call, run

# Each stage takes no time, and runs what a variable holds, of which DVC does not know.
PIPELINE = """\
stages:
  evaluate:
    cmd: mkdir -p log metrics && echo 1 > metrics/metrics.json && cp models/adapter log/hasil.jsonl && eval "$EVALUATE"
    deps: [models/adapter]
    outs: [log/hasil.jsonl]
    metrics: [metrics/metrics.json: {cache: false}]
  prepare:
    cmd: mkdir -p data/prepared && cp rows data/prepared/train && eval "$PREPARE"
    deps: [rows]
    params: [seed]
    outs: [data/prepared]
  train:
    cmd: mkdir -p models && cp data/prepared/train models/adapter && eval "$TRAIN"
    deps: [data/prepared/train]
    outs: [models/adapter]
"""
MAKEFILE = f"VENV := .venv\nrun:\n\tln -s {sys.prefix} $(VENV) && . $(VENV)/bin/activate && dvc repro\n"
FILES = {"params.yaml": "seed: 0\n", "rows": "1\n", "requirements.lock": "rich==0.1\n", "Makefile": MAKEFILE}
OTHER_PLACE = {"MAKEFLAGS": "-- VENV=elsewhere", "GIT_DIR": "nowhere"}  # as under make, and in a hook of git
PREPARED, ADAPTER, RESULTS = "prepare: data/prepared", "train: models/adapter", "evaluate: log/hasil.jsonl"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed run of the small pipeline. Not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    for name, text in {**FILES, "dvc.yaml": PIPELINE}.items():
        (folder / name).write_text(text, encoding="utf-8")
    for command in ("git init -q", "dvc init -q", "dvc repro -q", "git add -A", "git commit -qm run"):
        run(folder, *command.split())
    return folder


@pytest.fixture
def project(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change, with an empty folder for clones beside it."""
    (tmp_path / "clones").mkdir()
    return Path(shutil.copytree(made, tmp_path / "project", symlinks=True))


def start(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder.parent / "clones"), **variables}
    command, pipe = [sys.executable, "-m", "howto", "verify", *arguments], subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def verify(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    return end(start(folder, *arguments, **variables), folder)


def end(process: subprocess.Popen[str], folder: Path) -> tuple[int, str, str]:
    """Return exit status, output and errors, once the clone is removed."""
    out, errors = process.communicate(timeout=120)
    assert list((folder.parent / "clones").iterdir()) == []
    return process.returncode, out, errors


@pytest.mark.parametrize(("arguments", "variables"), [(["--here"], {}), ([], OTHER_PLACE)])
def test_a_run_with_the_committed_hashes_exits_with_0_and_leaves_the_folder_as_it_was(
    project: Path, arguments: list[str], variables: dict[str, str]
) -> None:
    (project / "params.yaml").write_text("seed: 1  # not committed\n", encoding="utf-8")
    before = call(project, "git", "status", "--porcelain", "--ignored").stdout
    status, out, errors = verify(project, *arguments, **variables)
    assert status == 0, out + errors
    assert "uncommitted" in out and "params.yaml" in out
    assert "Running stage 'train'" in out and "REPRODUCED: all 4 outputs of 3 stages" in out
    assert call(project, "git", "status", "--porcelain", "--ignored").stdout == before


@pytest.mark.parametrize(
    ("variable", "command", "different", "first"),
    [
        ("TRAIN", "echo >> models/adapter", [ADAPTER, RESULTS], ["train"]),
        ("PREPARE", "echo >> data/prepared/train", [PREPARED, ADAPTER, RESULTS], ["prepare"]),
        ("TRAIN", "false", [ADAPTER, RESULTS, "evaluate: metrics/metrics.json"], []),
    ],
)
def test_different_outputs_and_the_first_stage_at_fault_are_named(
    project: Path, variable: str, command: str, different: list[str], first: list[str]
) -> None:
    status, out, _ = verify(project, "--here", **{variable: command})
    assert status == 1 and f"; {len(different)} of 4 outputs differ" in out
    assert re.findall("(.*): expected", out) == different
    assert re.findall("(.*) differs although", out) == first
    assert "\nCPU: " in out and "\nnot as in requirements.lock: rich 1" in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_runs_in_the_clone_and_removes_it(project: Path, number: signal.Signals) -> None:
    process = start(project, "--here", EVALUATE='echo "stage $$" && tail -f /dev/null')
    line = next(line for line in process.stdout or [] if line.startswith("stage "))
    stage = psutil.Process(int(line.split()[1]))
    process.send_signal(number)
    status, out, errors = end(process, project)
    assert status == (130 if number == signal.SIGINT else 143), out + errors
    assert errors.count("error:") == 1 and "Traceback" not in errors
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE


CHANGED_STAGES = PIPELINE.replace("cp rows", "cat rows >") + "  new: {cmd: echo > new, outs: [new]}\n"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"dvc.lock": ""}, "HEAD:dvc.lock: no such file"),
        ({"dvc.yaml": CHANGED_STAGES}, "(new: new stage, prepare: command)"),
        ({"rows": "2\n", "metrics/metrics.json": "2\n"}, "(evaluate: metrics/metrics.json, prepare: rows)"),
    ],
)
def test_a_commit_that_is_no_finished_run_is_one_line(project: Path, files: dict[str, str], problem: str) -> None:
    for name, text in files.items():
        (project / name).unlink() if not text else (project / name).write_text(text, encoding="utf-8")
    call(project, "git", "commit", "-qam", "change")
    status, out, errors = verify(project, "--here")
    assert status == 1 and out == "" and errors.count("\n") == 1 and problem in errors
