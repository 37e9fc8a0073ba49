"""A stage that is killed leaves nothing that looks finished, ends its children, and goes on where it was."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, call, run_stage, wait_for_checkpoint

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
FILES = ("models/adapter/adapter_model.safetensors", "metrics/train.json", "metrics/train_loss.csv")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")


def longer(folder: Path) -> Path:
    """A run of some seconds in place of the finished folder's, whose training is gone."""
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    assert "      epochs: 1 " in text
    path.write_text(text.replace("      epochs: 1 ", "      epochs: 30 ", 1), encoding="utf-8")
    shutil.rmtree(folder / "models/adapter")
    (folder / "metrics/train.json").unlink()
    return folder


def start(folder: Path, **more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stages.train"]
    return subprocess.Popen(command, cwd=folder, env={**ENVIRONMENT, **more}, stderr=subprocess.PIPE, text=True)


def hashes(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]


def test_a_run_killed_at_random_moments_ends_with_the_bytes_of_one_that_was_not(finished: Path, tmp_path: Path) -> None:
    whole, killed = (longer(Path(shutil.copytree(finished, tmp_path / name))) for name in ("whole", "killed"))
    done = run_stage(whole, "stages.train")
    assert done.returncode == 0, done.stderr
    chance = random.Random(1)
    for _ in range(3):
        with start(killed) as process:
            wait_for_checkpoint(killed, process)
            time.sleep(chance.uniform(0, 1.0))
            process.kill()
        assert not (killed / "models/adapter").exists() and not (killed / "metrics/train.json").exists()
    done = run_stage(killed, "stages.train")
    assert done.returncode == 0, done.stderr
    assert "resumed from step" in done.stdout
    assert hashes(killed) == hashes(whole)
    assert not list((killed / "models/checkpoints").glob("*")) and not list(killed.rglob("*.part"))


def test_another_hyperparameter_never_goes_on_from_this_ones_checkpoint(workplace: Path) -> None:
    folder = longer(workplace)
    with start(folder) as process:
        wait_for_checkpoint(folder, process)
        process.kill()
    path = folder / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("epochs: 30 ", "epochs: 2 ", 1), encoding="utf-8")
    done = run_stage(folder, "stages.train")
    assert done.returncode == 0 and "resumed" not in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGINT, 130, "stopped by the keyboard"), (signal.SIGTERM, 143, "stopped by SIGTERM")],
)
def test_a_signal_stops_it_with_one_line_and_nothing_half_written(
    workplace: Path, number: signal.Signals, status: int, said: str
) -> None:
    folder = longer(workplace)
    with start(folder) as process:
        wait_for_checkpoint(folder, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    assert errors.splitlines()[-1].startswith(f"error: {said}") and "Traceback" not in errors
    assert not (folder / "models/adapter").exists() and not list(folder.rglob("*.part"))


STUCK = """
import hashlib
from howto.core.errors import reports_errors
@reports_errors
def main():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2 * 10**9)  # one long call into C: Python runs no handler before it returns
main()
"""


CROWDED = """
import mmap, resource, sys
from howto.core.errors import reports_errors
@reports_errors
def main():
    pages = int(open("/proc/self/statm").read().split()[0])
    most = pages * resource.getpagesize() + (60 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if sys.argv[1] == "library":
        import torch  # noqa: F401
    elif sys.argv[1] == "bytes":
        bytearray(1 << 30)
    else:
        mmap.mmap(-1, 1 << 30)
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("what", ["library", "bytes", "mapping"])
def test_no_memory_is_one_line(what: str) -> None:
    done = call(ROOT, sys.executable, "-c", CROWDED, what)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: out of memory; lower the batch size in params.yaml, or free memory\n"


def test_a_process_that_is_deep_in_a_library_ends_within_seconds(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "stopped by SIGTERM" in errors


DVC = """
import subprocess, sys
subprocess.run([sys.executable, "-m", "stages.train"])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_does_not_go_on_when_dvc_has_gone(workplace: Path, number: signal.Signals) -> None:
    folder = longer(workplace)
    script = folder / "dvc"  # a parent by DVC's name
    script.write_text(DVC, encoding="utf-8")
    environment = {**ENVIRONMENT, "DVC_STAGE": "train"}
    with subprocess.Popen([sys.executable, str(script)], cwd=folder, env=environment, stderr=subprocess.DEVNULL) as dvc:
        wait_for_checkpoint(folder, dvc)
        stages = psutil.Process(dvc.pid).children(recursive=True)
        dvc.send_signal(number)
        dvc.wait()
    assert stages
    _, alive = psutil.wait_procs(stages, timeout=20)
    assert alive == [] and not (folder / "models/adapter").exists()


def test_params_that_are_edited_while_it_runs_are_an_error_at_its_end(workplace: Path) -> None:
    folder = longer(workplace)
    with start(folder) as process:
        wait_for_checkpoint(folder, process)
        path = folder / "params.yaml"
        path.write_text(path.read_text(encoding="utf-8").replace("  seed: 42 ", "  seed: 43 ", 1), encoding="utf-8")
        _, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "params.yaml (train.seed): changed while the stage ran" in errors
    assert not (folder / "models/adapter").exists() and not (folder / "metrics/train.json").exists()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are chosen on Linux alone")
def test_the_bytes_do_not_depend_on_how_many_cores_are_free(workplace: Path) -> None:
    before = hashes(workplace)
    shutil.rmtree(workplace / "models/adapter")
    cores = os.sched_getaffinity(0)
    command = ["taskset", "-c", str(min(cores)), sys.executable, "-m", "stages.train"]
    subprocess.run(command, cwd=workplace, env=ENVIRONMENT, check=True, timeout=300)
    assert hashes(workplace) == before
