"""Two hosts without a shared disk train the adapter of one, and neither waits long for one that is lost."""

import shutil
import time
from pathlib import Path

import pytest

from benchmarks.two_hosts import ADAPTER, STAGE, Host, both, can_be_made, ended, two_hosts, wait_for_a_checkpoint
from tests.conftest import ROOT
from tests.support.in_process import edit_params
from tests.support.processes import resumed

pytestmark = pytest.mark.skipif(not can_be_made(), reason="needs root on Linux, and network namespaces")


@pytest.fixture
def folders(by_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The project on two hosts, not yet trained."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    one, two = (Path(shutil.copytree(by_two, tmp_path / name / "folder")) for name in ("one", "two"))
    for folder in (one, two):
        shutil.rmtree(folder / "models/adapter")
    return one, two


def errors(host: Host) -> list[str]:
    return [line for line in host.lines() if "error" in line]


def test_if_a_host_is_lost_the_other_ends_and_the_next_run_resumes_to_the_bytes_of_one_host(
    by_two: Path, folders: tuple[Path, Path]
) -> None:
    with two_hosts(folders) as hosts:
        processes = both(hosts, STAGE)
        wait_for_a_checkpoint(hosts[0])
        hosts[1].kill()
        ended(processes[:1], time.monotonic())
        assert processes[0].returncode == 1 and len(errors(hosts[0])) == 1
        assert not (folders[0] / ADAPTER).exists()
        processes[1].wait()
        processes = both(hosts, STAGE)
        ended(processes, time.monotonic())
        assert [process.returncode for process in processes] == [0, 0], hosts[0].lines() + hosts[1].lines()
    assert resumed(folders[0])
    assert (folders[0] / ADAPTER).read_bytes() == (by_two / ADAPTER).read_bytes()
    assert not (folders[1] / ADAPTER).exists()  # only the first one writes
    assert not list(folders[0].glob("models/checkpoints/*"))


def test_a_host_with_other_inputs_stops_with_a_line_that_names_them(folders: tuple[Path, Path]) -> None:
    edit_params(folders[1], "  seed: 42 ", "  seed: 43 ")
    with two_hosts(folders) as hosts:
        processes = both(hosts, STAGE)
        ended(processes, time.monotonic())
    assert [process.returncode for process in processes] == [1, 1]
    (line,) = errors(hosts[1])
    assert line.startswith("error: params.yaml") and "train.seed" in line
    assert len(errors(hosts[0])) == 1
