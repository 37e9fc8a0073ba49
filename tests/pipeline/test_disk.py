"""A full disk, a read-only folder: one line at every stage, nothing half-written is left, the next run ends well."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.repro_trial import digest
from tests.conftest import call, run_stage

MADE = {
    "fetch_model": ["models/base"],
    "fetch_data": ["data/raw"],
    "prepare": ["data/prepared", "metrics/data.json"],
    "train": ["metrics/train.json", "metrics/train_loss.csv", "models/adapter"],
    "infer --stage base": ["data/predictions/base.jsonl"],
    "infer --stage adapter": ["data/predictions/adapter.jsonl"],
    "evaluate": ["log/hasil.jsonl", "metrics/report.html", "metrics/metrics.json"],
}
MEBI = 1 << 20


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine lets nobody mount: {done.stderr.strip()}")


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MiB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a file system is mounted by root, on Linux")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        unmount(folder)


def fill(disk: Path, room: int) -> Path:
    """Fill the disk but for so many bytes; the file that does so."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while written := _write(file.fileno(), bytes(MEBI)):
            pass
        assert written == 0
    os.truncate(filler, filler.stat().st_size - room)
    return filler


def _write(descriptor: int, data: bytes) -> int:
    try:
        return os.write(descriptor, data)
    except OSError:
        return 0


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize("stage", MADE)
def test_a_disk_that_fills_up_is_one_line_and_with_room_the_stage_makes_the_same_bytes(
    stage: str, finished: Path, disk: Path
) -> None:
    folder = Path(shutil.copytree(finished, disk / "folder"))
    whole = {path: digest(folder / path) for path in MADE[stage]}
    size = sum(file.stat().st_size for path in MADE[stage] for file in [folder / path, *(folder / path).rglob("*")])
    for path in MADE[stage]:
        remove(folder / path)
    filler = fill(disk, min(size // 3, 48 * 1024) // 4096 * 4096)
    done = run_stage(folder, *f"stages.{stage}".split())
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "the disk is full; free space and run again" in done.stderr
    assert not (folder / MADE[stage][-1]).exists() and not list(folder.rglob("*.part"))
    assert all(digest(folder / path) in (whole[path], "") for path in MADE[stage])
    filler.unlink()
    done = run_stage(folder, *f"stages.{stage}".split())
    assert done.returncode == 0, done.stderr
    assert {path: digest(folder / path) for path in MADE[stage]} == whole
    assert not list(folder.rglob("*.part"))


def test_where_dvcs_cache_is_full_the_output_stays_and_the_next_repro_takes_it_up(
    project: Path, tmp_path: Path, disk: Path
) -> None:
    before = digest(project / "data/raw")
    # A cache of its own, on the full disk, that knows nothing.
    shutil.rmtree(project / ".dvc/cache")
    assert call(project, "dvc", "config", "--local", "cache.dir", str(disk / "cache")).returncode == 0
    filler = fill(disk, 16 * 1024)
    done = call(project, "dvc", "repro", "--single-item", "fetch_data")
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert digest(project / "data/raw") in (before, "")
    filler.unlink()
    done = call(project, "dvc", "repro", "--single-item", "fetch_data")
    assert done.returncode == 0 and "Running stage 'fetch_data'" in done.stdout, done.stderr
    assert digest(project / "data/raw") == before
    assert call(project, "git", "status", "--short").stdout == ""


@pytest.mark.parametrize("stage", MADE)
def test_a_folder_that_cannot_be_written_is_one_line(stage: str, finished: Path, disk: Path) -> None:
    folder = Path(shutil.copytree(finished, disk / "folder"))
    before = digest(folder)
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,ro,bind", str(folder))
        done = run_stage(folder, *f"stages.{stage}".split())
    finally:
        unmount(folder)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "the file system is read-only; run from a folder that can be written" in done.stderr
    assert digest(folder) == before
