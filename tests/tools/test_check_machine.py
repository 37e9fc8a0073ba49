"""What the doctor finds of the machine: device, memory, disk, cores and the kind of CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from howto.core.instruction_set import cpu
from howto.tools.check_machine import check_cores, check_cpu, check_device, check_memory_and_disk
from howto.tools.finding import OK, PROBLEM, WARNING
from tests.support.doctoring import ask, only, use_tinyllama
from tests.support.in_process import edit_params


def test_the_device(examined: Path) -> None:
    only(check_device, OK, "torch")
    edit_params(examined, "processes: 1              #", "processes: 4              #")
    assert [finding.said for finding in ask(check_device)][1:] == ["4, by gloo over loopback"]
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: what is missing without one cannot be provoked")
    edit_params(examined, "device: cpu ", "device: cuda")
    found = ask(check_device)[0]
    assert (
        found.level == PROBLEM and found.said.startswith("cuda is wanted: ") and "machine.device: auto" in found.to_do
    )
    use_tinyllama(examined)
    only(check_device, WARNING, "no GPU (", "all is computed on the CPU")


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, memory: float) -> None:
    """Let the process that asks torch for GPUs find one that sees these."""
    (folder / "other").mkdir(exist_ok=True)
    (folder / "other/torch.py").write_text(
        "from types import SimpleNamespace as Has\n__version__, version = '2.13.0', Has(cuda='13.0')\n"
        f"gpu = Has(name='GPU of a test', total_memory={memory * 2**30}, major=8)\n"
        f"cuda = Has(is_available=lambda: True, device_count=lambda: {gpus}, get_device_properties=lambda n: gpu)\n"
        "yes = lambda: True\n"
        "distributed = Has(is_available=yes, is_gloo_available=yes, is_nccl_available=yes)\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(folder / "other"))


def test_processes_are_shared_out_to_hosts_and_each_wants_a_gpu(
    examined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tinyllama(examined)
    pretend(examined, monkeypatch, gpus=4, memory=80)
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("      processes: 1\n", "      processes: 8\n"), encoding="utf-8")
    only(check_device, PROBLEM, "train.processes is 8, and there are 4 GPUs")
    monkeypatch.setenv("PET_NNODES", "2")
    assert [finding.level for finding in ask(check_device)] == [OK, OK]
    assert ask(check_device)[1].said == "8, 4 of them on this host, by nccl over the network, which was not tried"
    monkeypatch.setenv("PET_NNODES", "3")
    only(check_device, PROBLEM, "train.processes: expected a multiple of 3 hosts (PET_NNODES), got 8")


def test_a_torch_that_cannot_be_imported(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (examined / "broken").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(examined / "broken"))
    for code, said in (
        ("raise ImportError('libgomp.so.1: cannot open shared object file')", "libgomp.so.1: cannot open"),
        ("import os; os.abort()", "it ended with -6"),
    ):
        (examined / "broken/torch.py").write_text(code, encoding="utf-8")
        only(check_device, PROBLEM, "cannot be imported", said, "--force-reinstall torch")


def test_too_little_memory_and_disk(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {finding.level for finding in ask(check_memory_and_disk)} == {OK}
    monkeypatch.setattr("howto.tools.check_machine.MEMORY", 1e15)
    only(check_memory_and_disk, WARNING, "memory: ", "the smallest profile needs ")


def test_cores(examined: Path) -> None:
    edit_params(examined, "threads: 2 ", "threads: 1000 ")
    only(check_cores, WARNING, "machine.threads: 1000")
    edit_params(examined, "threads: 1000 ", "threads: 1 ")
    only(check_cores, OK, "of which machine.threads takes 1")


def test_more_processes_than_cores(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    edit_params(examined, "threads: 2 ", "threads: 1 ")
    edit_params(examined, "processes: 1 ", f"processes: {2 * cores} ")
    only(check_cores, WARNING, f"{2 * cores} processes of machine.threads: 1 each", "lower train.processes, or take")
    edit_params(examined, f"processes: {2 * cores} ", f"processes: {cores} ")
    edit_params(examined, "threads: 1 ", "threads: 2 ")
    if cores > 1:
        only(check_cores, WARNING, f"{cores} processes of machine.threads: 2 each", "set machine.threads: 1")
    edit_params(examined, f"processes: {cores} ", f"processes: {2 * cores} ")
    edit_params(examined, "threads: 2 ", "threads: 1 ")
    monkeypatch.setenv("PET_NNODES", "2")
    only(check_cores, OK, "of which machine.threads takes 1")


def test_a_cpu_without_avx2(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(check_cpu, OK, cpu()[0].split(",")[0])
    (examined / "cpuinfo").write_text("model name\t: Old CPU\nflags\t\t: fpu sse2 avx\n", encoding="utf-8")
    monkeypatch.setattr("howto.core.instruction_set.CPUINFO", examined / "cpuinfo")
    only(check_cpu, WARNING, "Old CPU is no x86-64 CPU with AVX2 and FMA", "machine.instruction_set: native")
