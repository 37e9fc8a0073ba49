"""On a full or read-only disk every stage ends with one line and leaves nothing half-written."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.kills import digest
from tests.support.in_process import Done, run_stage_here

# The stages, and what each writes. Its most important output is the last one that it writes.
OUTPUTS = {
    "fetch_model": ["models/base"],
    "fetch_data": ["data/raw"],
    "prepare": ["data/prepared", "metrics/data.json"],
    "train": ["metrics/train.json", "metrics/train_loss.csv", "models/adapter"],
    "infer@base": ["data/predictions/base.jsonl"],
    "general@base": ["data/predictions/general_base.json"],
    "evaluate": ["log/hasil.jsonl", "metrics/report.html", "metrics/metrics.json"],
}


def assert_one_line(done: Done, words: str) -> None:
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert words in done.stderr


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine does not allow mounting: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, room: int) -> Path:
    """Fill the disk except for `room` bytes; return the file that does so."""
    filler = disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(disk).free - room))
    return filler


@pytest.mark.parametrize("stage", OUTPUTS)
def test_a_full_disk_or_a_read_only_one_is_one_line_and_with_room_the_stage_makes_the_same_bytes(
    stage: str, finished: Path, disk: Path
) -> None:
    folder = Path(shutil.copytree(finished, disk / "folder"))
    assert run_stage_here(stage, folder).returncode == 0  # here libraries came before a stage's settings: other digits
    complete = {path: digest(folder / path) for path in OUTPUTS[stage]}
    mount("-o", "remount,ro", str(disk))
    done = run_stage_here(stage, folder)
    mount("-o", "remount,rw", str(disk))
    assert_one_line(done, "read-only")
    assert {path: digest(folder / path) for path in OUTPUTS[stage]} == complete

    size = sum(file.stat().st_size for path in OUTPUTS[stage] for file in [folder / path, *(folder / path).rglob("*")])
    for path in (folder / name for name in OUTPUTS[stage]):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    filler = fill(disk, min(size // 3, 48 * 1024) // 4096 * 4096)
    done = run_stage_here(stage, folder)
    assert_one_line(done, "the disk is full")
    assert not list(folder.rglob("*.part")) and not (folder / OUTPUTS[stage][-1]).exists()
    assert all(digest(folder / path) in (complete[path], "") for path in OUTPUTS[stage])
    filler.unlink()
    done = run_stage_here(stage, folder)
    assert done.returncode == 0, done.stderr
    assert {path: digest(folder / path) for path in OUTPUTS[stage]} == complete and not list(folder.rglob("*.part"))
