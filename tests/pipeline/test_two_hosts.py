"""Two hosts without a shared disk train the adapter of one, and neither waits long for one that is lost."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from benchmarks.two_hosts import ADAPTER, STAGE, Host, both, can_be_made, ended, two_hosts, wait_for_a_checkpoint
from howto.modeling.distributed.launch import PEER_FAILED
from tests.conftest import ROOT
from tests.support.in_process import edit_params

pytestmark = pytest.mark.skipif(not can_be_made(), reason="it takes root on Linux, and network namespaces")


@pytest.fixture
def folders(by_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The project on two hosts, not yet trained."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    one, two = (Path(shutil.copytree(by_two, tmp_path / name / "folder")) for name in ("one", "two"))
    for folder in (one, two):
        shutil.rmtree(folder / "models/adapter")
    return one, two


def run(hosts: tuple[Host, Host]) -> None:
    processes = both(hosts, STAGE)
    ended(processes, time.monotonic())
    assert [process.returncode for process in processes] == [0, 0], hosts[0].said() + hosts[1].said()


def test_a_host_that_is_lost_ends_the_other_and_the_next_run_ends_with_the_bytes_of_one_host(
    by_two: Path, folders: tuple[Path, Path]
) -> None:
    with two_hosts(folders) as hosts:
        processes = both(hosts, STAGE)
        wait_for_a_checkpoint(hosts[0])
        hosts[1].kill()
        ended(processes[:1], time.monotonic())
        assert processes[0].returncode == 1
        assert [line for line in hosts[0].said() if "error" in line] == [f"error: {PEER_FAILED}"]
        assert not (folders[0] / ADAPTER).exists()
        processes[1].wait()
        run(hosts)
    assert any("resumed from step" in line for line in hosts[0].said())
    assert (folders[0] / ADAPTER).read_bytes() == (by_two / ADAPTER).read_bytes()
    assert not (folders[1] / ADAPTER).exists()  # only the first one writes
    assert not list(folders[0].glob("models/checkpoints/*"))


def test_a_host_with_other_inputs_stops_with_a_line_that_names_them(folders: tuple[Path, Path]) -> None:
    edit_params(folders[1], "  seed: 42 ", "  seed: 43 ")
    with two_hosts(folders) as hosts:
        processes = both(hosts, STAGE)
        ended(processes, time.monotonic())
    assert [process.returncode for process in processes] == [1, 1]
    (line,) = [line for line in hosts[1].said() if "error" in line]
    assert line.startswith("error: params.yaml (train.seed): not as on the first host")
    assert [line for line in hosts[0].said() if "error" in line] == [f"error: {PEER_FAILED}"]
