"""The committed run is made again in a clone; where it is not, the first stage that parts is named."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from howto.core.errors import UserError
from howto.tools.reproduction import Found
from howto.tools.verdict import print_verdict, where
from howto.tools.verify import make_again
from tests.conftest import ROOT, run_stage
from tests.pipeline.test_pipeline import run

# A pipeline of this project's shape whose stages take no time. Variables do to it what another machine does to a run:
# DVC knows of none of them, and they change what a stage writes.
PIPELINE = """\
stages:
  evaluate:
    cmd: python evaluate.py
    deps: [models/adapter, evaluate.py]
    outs: [log/hasil.jsonl]
    metrics: [metrics/metrics.json: {cache: false}]
  fetch_data:
    cmd: mkdir -p data/raw && echo rows > data/raw/rows
    outs: [data/raw]
  prepare:
    cmd: mkdir -p data/prepared && cat data/raw/rows > data/prepared/train && printf "$DISK" >> data/prepared/train
    deps: [data/raw]
    params: [prepare.split.seed]
    outs: [data/prepared]
  train:
    cmd:
    - mkdir -p models && tr a-z A-Z < data/prepared/train > models/adapter && printf "$CHIP" >> models/adapter
    - test -z "$FULL"
    deps: [data/prepared/train]
    outs: [models/adapter]
"""
EVALUATE = """\
import json, os, pathlib

for folder in ("log", "metrics"):
    pathlib.Path(folder).mkdir(exist_ok=True)
adapter = pathlib.Path("models/adapter").read_text()
pathlib.Path("log/hasil.jsonl").write_text(adapter.strip() + " scored")
scores = {"base": {"rougeL": 0.1}, "adapter": {"rougeL": 0.6 - len(adapter) / 1000}}
pathlib.Path("metrics/metrics.json").write_text(json.dumps(scores))
if waiting := os.environ.get("WAITING"):
    pathlib.Path(waiting).write_text(str(os.getpid()))
    open(waiting + ".fifo").read()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A committed run of the small pipeline. Not to be changed: see `copied`."""
    folder = tmp_path_factory.mktemp("committed")
    for name in ("params.yaml", "pyproject.toml"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (folder / "evaluate.py").write_text(EVALUATE, encoding="utf-8")
    run(folder, "git", "init", "-q")
    run(folder, "dvc", "init", "-q")
    run(folder, "dvc", "config", "core.analytics", "false")
    run(folder, "dvc", "repro", "-q")
    commit(folder)
    return folder


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(project, tmp_path / "project"))


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-qm", "run")


def found_with(monkeypatch: pytest.MonkeyPatch, project: Path, **variables: str) -> Found:
    """What is found where these variables are set."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return make_again(project, here=True)


def told(found: Found, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The exit status, and what is printed, in one line."""
    capsys.readouterr()
    status = print_verdict(found)
    return status, " ".join(capsys.readouterr().out.split())


def test_a_run_that_is_made_again_is_reproduced_and_nothing_is_left_or_touched(copied: Path, tmp_path: Path) -> None:
    params = copied / "params.yaml"
    params.write_text("# not committed\n" + params.read_text(encoding="utf-8"), encoding="utf-8")
    before = run(copied, "git", "status", "--porcelain", "--ignored")
    (tmp_path / "clones").mkdir()
    done = verify_in(copied, tmp_path / "clones")
    said, _ = done.communicate(timeout=120)
    assert done.returncode == 0, said
    assert "verify: uncommitted changes are not verified, but HEAD: params.yaml\n" in said
    assert "Running stage 'train'" in said, "the clone's progress is not shown"
    assert "REPRODUCED: all 5 outputs of 4 stages are the committed ones, byte for byte." in said
    assert list((tmp_path / "clones").iterdir()) == []
    assert run(copied, "git", "status", "--porcelain", "--ignored") == before


def test_a_broken_dvc_yaml_is_one_line(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (copied / "dvc.yaml").open("a", encoding="utf-8") as file:
        file.write("  bad: [\n")
    commit(copied)
    with pytest.raises(UserError, match=r"dvc\.yaml: DVC cannot read what is committed"):
        make_again(copied, here=True)


def test_the_first_stage_that_differs_is_the_cause_and_what_follows_is_not(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = found_with(monkeypatch, project, CHIP="!")
    status, said = told(found, capsys)
    assert status == 1
    assert [stage.name for stage in found.stages] == ["fetch_data", "prepare", "train", "evaluate"]
    assert "train is the first stage that differs: with the same inputs, code and params it made other bytes" in said
    assert "of models/adapter. Downstream, as their inputs differ: evaluate." in said
    assert "FAILED: with the same code and params every byte has to be the same." in said


def test_a_cpu_that_cannot_make_the_same_bytes_is_told_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cpuinfo").write_text("Features\t: fp asimd\nCPU part\t: 0xd40\n", encoding="utf-8")
    monkeypatch.setattr("howto.core.instruction_set.CPUINFO", tmp_path / "cpuinfo")
    make_again(project, here=True)
    assert "verify: 0xd40 is no x86-64 CPU with AVX2 and FMA." in capsys.readouterr().out


def test_a_first_stage_that_differs_is_the_cause_of_all_that_follows(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = told(found_with(monkeypatch, project, DISK="!"), capsys)
    assert status == 1
    assert "prepare is the first stage that differs" in said
    assert "Downstream, as their inputs differ: train, evaluate." in said


def test_a_run_that_fails_shows_what_was_made_and_what_was_not(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = told(found_with(monkeypatch, project, FULL="1", CHIP="!"), capsys)
    assert status == 1
    assert "Not made: models/adapter, log/hasil.jsonl, metrics/metrics.json." in said
    assert "FAILED: `dvc repro` ended with status 255; 2 of 5 outputs were made." in said


def test_commits_that_do_not_belong_together_are_named(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "params.yaml"
    text = path.read_text(encoding="utf-8")
    start = text.index("near_intents:")
    path.write_text(text[:start] + text[start:].replace("seed: 0 ", "seed: 1 ", 1), encoding="utf-8")
    (copied / "metrics/metrics.json").write_text('{"base": {"rougeL": 0.9}, "adapter": {"rougeL": 0.9}}')
    code = copied / "dvc.yaml"
    code.write_text(code.read_text(encoding="utf-8").replace("echo rows >", "touch left && echo rows >"))
    commit(copied)
    found = found_with(monkeypatch, copied)
    status, said = told(found, capsys)
    assert status == 1
    assert all(output.same for output in found.outputs)
    assert where(found) == [
        "metrics/metrics.json: the committed file is not the one that the committed dvc.lock knows; commit both of one "
        "run.",
        "fetch_data is not run as the committed dvc.lock says (cmd changed): say `dvc repro`, and commit dvc.lock with "
        "the change.",
        "prepare is not run as the committed dvc.lock says (params changed): say `dvc repro`, and commit dvc.lock with "
        "the change.",
        "The run left changes in git beside its outputs: metrics/metrics.json, left.",
    ]
    assert "FAILED: what is committed does not belong together, see above." in said


def test_an_output_that_the_committed_lock_has_otherwise_is_said_to_differ(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = copied / "dvc.lock"
    text = lock.read_text(encoding="utf-8")
    start = text.index("    - path: log/hasil.jsonl")
    lock.write_text(text[:start] + re.sub("md5: [0-9a-f]{8}", "md5: 01234567", text[start:], count=1), encoding="utf-8")
    commit(copied)
    status, said = told(found_with(monkeypatch, copied), capsys)
    assert status == 1
    assert "evaluate is the first stage that differs: with the same inputs, code and params it made" in said
    assert "other bytes of log/hasil.jsonl." in said
    assert "log/hasil.jsonl │ 01234567 │" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_what_runs_in_the_clone_and_removes_it(
    project: Path, tmp_path: Path, number: signal.Signals
) -> None:
    waiting, clones = tmp_path / "waiting", tmp_path / "clones"
    clones.mkdir()
    os.mkfifo(f"{waiting}.fifo")
    process = verify_in(project, clones, WAITING=str(waiting))
    until = time.monotonic() + 120
    while not (waiting.exists() and waiting.read_text()):
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.02)
    stage = psutil.Process(int(waiting.read_text()))
    assert len(list(clones.iterdir())) == 1
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), said + errors
    assert errors.count("error:") == 1 and "Traceback" not in errors
    assert list(clones.iterdir()) == []
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE


def test_what_cannot_be_verified_is_one_line(tmp_path: Path, project: Path) -> None:
    done = run_stage(tmp_path, "howto", "verify", "--here")
    assert done.returncode == 1
    assert done.stderr.startswith("error: git rev-parse: ") and done.stderr.count("\n") == 1
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, "git", "commit", "-q", "--allow-empty", "-m", "nothing")
    done = run_stage(tmp_path, "howto", "verify", "--here")
    assert done.stderr == "error: dvc.lock: not in HEAD; commit it, as `make run` wrote it\n"
    (tmp_path / "dvc.lock").write_text("stages: [", encoding="utf-8")
    run(tmp_path, "git", "add", "dvc.lock")
    run(tmp_path, "git", "commit", "-q", "-m", "damaged")
    done = run_stage(tmp_path, "howto", "verify", "--here")
    assert done.stderr == "error: dvc.lock at HEAD: damaged; make it again with `dvc repro`, and commit it\n"


def test_make_run_sets_up_the_clone_by_itself_whatever_this_folder_is_told(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / ".gitignore").write_text("/.venv\n", encoding="utf-8")
    (copied / "Makefile").write_text(
        f"VENV := .venv\nrun:\n\tln -s {sys.prefix} $(VENV) && . $(VENV)/bin/activate && dvc repro\n", encoding="utf-8"
    )
    commit(copied)
    monkeypatch.setenv("MAKEFLAGS", "-- VENV=elsewhere")  # as after `make verify VENV=elsewhere`
    monkeypatch.setenv("GIT_DIR", str(copied / "nowhere"))  # as in a hook of git
    found = make_again(copied, here=False)
    status, said = told(found, capsys)
    assert status == 0, said
    assert found.command == "`make run`"


def test_this_projects_own_stages_are_made_again_from_nothing(known: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = make_again(known, here=True)
    status, said = told(found, capsys)
    assert status == 0, said
    names = [stage.name for stage in found.stages]
    assert names == ["fetch_model", "fetch_data", "prepare", "train", "infer@base", "infer@adapter", "evaluate"]
    assert len(found.outputs) >= 18 and all(output.same for output in found.outputs)


def verify_in(folder: Path, clones: Path, **variables: str) -> subprocess.Popen[str]:
    """`howto verify --here` in `folder`, with its clone in `clones`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "TMPDIR": str(clones), **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "howto", "verify", "--here"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
