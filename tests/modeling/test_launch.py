"""How many processes run where is told by torchrun's own variables, and a mistake in them is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from howto.core.errors import UserError
from howto.modeling.distributed.launch import hosts, is_in_a_group, launch, on_this_host
from tests.conftest import run_stage


def test_processes_are_dealt_evenly_to_the_hosts_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hosts() == 1 and on_this_host(3, "train.processes") == 3
    monkeypatch.setenv("PET_NNODES", "2")
    assert on_this_host(8, "train.processes") == 4
    with pytest.raises(UserError, match=r"train\.processes is 3, which cannot be dealt evenly to 2 hosts"):
        on_this_host(3, "train.processes")


def test_a_host_of_several_does_not_set_out_alone(
    tmp_path: Path, small_params: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text(small_params, encoding="utf-8")
    for name, value in {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "10.255.0.1"}.items():
        monkeypatch.setenv(name, value)
    done = run_stage(tmp_path, "stages.train")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "is 1, which cannot be dealt evenly to 2 hosts (PET_NNODES)" in done.stderr


@pytest.mark.parametrize("name", ["PET_NNODES", "PET_NODE_RANK", "PET_MASTER_PORT"])
def test_a_variable_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1:2")
    with pytest.raises(UserError, match=f"{name} is '1:2' in the environment; a whole number is wanted"):
        hosts()


def test_half_of_a_group_is_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_in_a_group()
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")  # some machines set it for all
    assert not is_in_a_group()
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="but not WORLD_SIZE, LOCAL_RANK, MASTER_PORT"):
        is_in_a_group()


def test_hosts_that_do_not_meet_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PET_MASTER_PORT", "1")
    monkeypatch.setenv("PET_RDZV_CONF", "timeout=1")
    with pytest.raises(UserError) as stop:
        launch("stages.train", [], 1)
    message = str(stop.value)
    assert message.startswith("torchrun: stages.train could not be started at 127.0.0.1:1: ") and "\n" not in message
