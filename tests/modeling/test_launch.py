"""torchrun's variables say how many processes run where, and a mistake in them is one line."""

import os
from pathlib import Path

import pytest
import torch

import stages.train
from howto.core.errors import UserError
from howto.modeling.distributed.launch import host_count, in_process_group, launch, processes_per_host
from howto.modeling.distributed.process_group import ProcessGroup, join_process_group
from tests.support.in_process import run_here


def test_hosts_get_equal_numbers_of_processes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_params: str
) -> None:
    assert host_count() == 1 and processes_per_host(3, "train.processes") == 3
    monkeypatch.setenv("PET_NNODES", "2")
    assert processes_per_host(8, "train.processes") == 4
    (tmp_path / "params.yaml").write_text(small_params, encoding="utf-8")
    done = run_here(stages.train.main, tmp_path)  # with processes: 1
    assert done.returncode == 1
    assert "train.processes: expected a multiple of 2 hosts (PET_NNODES), got 1" in done.stderr


@pytest.mark.parametrize("name", ["PET_NNODES", "PET_NODE_RANK", "PET_MASTER_PORT"])
def test_a_variable_that_is_not_a_number_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1:2")
    with pytest.raises(UserError, match=f"{name}: expected a whole number, got '1:2'"):
        host_count()


def test_a_group_needs_all_of_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_process_group()
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")  # some machines set it for all programs
    assert not in_process_group()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="expected WORLD_SIZE, LOCAL_RANK, MASTER_PORT"):
        in_process_group()


def test_hosts_that_do_not_meet_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    monkeypatch.setenv("PET_RDZV_CONF", "timeout=1")
    with pytest.raises(UserError, match=r"^torchrun: cannot start stages.train at 127.0.0.1:1: .*$"):
        launch("stages.train", [], 1)


@pytest.mark.parametrize(
    ("size", "address", "named"), [("3", "127.0.0.1", "WORLD_SIZE"), ("2", "127.0.1.1", "MASTER_ADDR")]
)
def test_a_group_that_cannot_be_joined_is_one_line(
    size: str, address: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another size than in params.yaml, or an address that other hosts cannot reach."""
    started = {"RANK": "0", "WORLD_SIZE": size, "LOCAL_RANK": "0", "MASTER_ADDR": address, "MASTER_PORT": "1"}
    for name, value in {**started, "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    names = {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}
    before = names & os.environ.keys()
    with pytest.raises(UserError, match=named), join_process_group(2, torch.device("cpu"), "train.processes"):
        pass
    assert names & os.environ.keys() == before  # else later processes would be restricted to the loopback interface


def test_on_gpus_each_process_has_the_one_of_its_number_on_its_host() -> None:
    group = ProcessGroup(torch.device("cuda"), 5, 8, 1, 4)
    assert str(group.device) == "cuda:1"
    assert str(ProcessGroup(torch.device("cpu")).device) == "cpu"
