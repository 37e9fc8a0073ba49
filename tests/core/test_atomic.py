"""A file that exists is whole."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from howto.core.atomic import atomic_file, atomic_folder, write_json
from howto.core.errors import UserError, reports_errors
from tests.conftest import ROOT


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_file(path) as file:
        file.write("half")
        assert not path.exists()
    assert path.read_text(encoding="utf-8") == "half"


def test_a_failure_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write("new")
        raise ZeroDivisionError
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_the_old_one_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic_folder(path) as folder:
        (folder / "new").touch()
        raise ZeroDivisionError
    assert [p.name for p in path.iterdir()] == ["old"]
    with atomic_folder(path) as folder:
        (folder / "new").touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from howto.core.atomic import atomic_folder\n"
        f"with atomic_folder(Path({str(tmp_path / 'out')!r})) as folder:\n"
        "    (folder / 'weights').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert not (tmp_path / "out").exists()
    assert all(path.name.startswith(".") and path.name.endswith(".part") for path in tmp_path.iterdir())
    with atomic_folder(tmp_path / "out"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path: Path) -> None:
    (tmp_path / ".a[1].json.12345678.part").write_text("half", encoding="utf-8")
    (tmp_path / ".b.json.12345678.part").write_text("another's", encoding="utf-8")
    write_json(tmp_path / "a[1].json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.12345678.part", "a[1].json"]


def test_a_library_that_finds_the_disk_full_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @reports_errors
    def main() -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("error: the disk is full")


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @reports_errors
    def main() -> None:
        with Path("/dev/full").open("w") as file:
            file.write("a")

    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == 1 and "the disk is full" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (UserError("a.txt:3: wrong; mend it"), 1, "error: a.txt:3: wrong; mend it\n"),
        (KeyboardInterrupt(), 130, "stopped by the keyboard"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "lower micro_batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you"), 1, "lower micro_batch_size"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "b.txt"), 1, "b.txt: no permission"),
        (OSError(errno.ENOSPC, "full", "from.txt", None, "to.txt"), 1, "error: to.txt: the disk is full"),
    ],
)
def test_what_is_not_a_bug_is_one_line(
    raised: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @reports_errors
    def main() -> None:
        raise raised

    with pytest.raises(SystemExit) as end:
        main()
    error = capsys.readouterr().err
    assert end.value.code == status and said in error and error.count("\n") == 1


@pytest.mark.parametrize("bug", [ValueError("a bug"), RuntimeError("a bug"), OSError("a bug")])
def test_a_bug_keeps_its_stack_trace(bug: Exception) -> None:
    @reports_errors
    def main() -> None:
        raise bug

    with pytest.raises(type(bug), match="a bug"):
        main()


def test_ctrl_c_ends_a_stage_at_once_and_leaves_no_output(tmp_path: Path, small_params: str) -> None:
    (tmp_path / "params.yaml").write_text(small_params.replace("passes: 1", "passes: 500"), encoding="utf-8")
    stage = subprocess.Popen(
        [sys.executable, "-m", "stages.fetch_model"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (tmp_path / "models").exists():
            assert stage.poll() is None
            time.sleep(0.01)
        stage.send_signal(signal.SIGINT)
        _, error = stage.communicate(timeout=60)
    finally:
        stage.kill()  # it would go on for long
    assert stage.returncode == 130 and "stopped by the keyboard" in error
    assert list((tmp_path / "models").iterdir()) == []
