"""The facts of a machine are those that may change the bytes of a run, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

from howto.machine_facts import KIND, machine_facts
from howto.params.file import read_params
from tests.conftest import ROOT

X86 = """\
processor\t: 0
model name\t: Some CPU @ 2.00GHz
cpu family\t: 6
model\t\t: 85
stepping\t: 7
cpu MHz\t\t: {speed}
flags\t\t: fpu {other} sse2 fma smep avx2 avx512f

processor\t: 1
model name\t: never read
"""
ARM = """\
processor\t: 0
BogoMIPS\t: 243.75
Features\t: fp asimd evtstrm sve bf16
CPU implementer\t: 0x41
CPU part\t: 0xd40
"""


def facts_of(cpu: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    (folder / "cpuinfo").write_text(cpu, encoding="utf-8")
    monkeypatch.setattr("howto.cpu.CPUINFO", folder / "cpuinfo")
    monkeypatch.chdir(ROOT)
    return machine_facts(read_params())


def test_a_cpu_is_known_by_its_model_and_what_it_computes_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = facts_of(X86.format(speed="2000", other="ht"), tmp_path, monkeypatch)
    assert (found["cpu"], found["instructions"]) == ("Some CPU @ 2.00GHz, 6, 85, 7", "avx2 avx512f fma sse2")
    # How fast it happens to go, and what it can beside arithmetic, makes no other kind of it.
    again = facts_of(X86.format(speed="3100", other="rdrand"), tmp_path, monkeypatch)
    assert again == found
    arm = facts_of(ARM, tmp_path, monkeypatch)
    assert (arm["cpu"], arm["instructions"]) == ("0x41, 0xd40", "asimd bf16 sve")


def test_libraries_and_settings_that_compute_are_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("EDITOR", "ed")
    found = machine_facts(read_params())
    assert set(KIND) < found.keys()
    assert (found["torch"], found["numpy"]) == (torch.__version__, numpy.__version__)
    assert "MKL_CBWR=COMPATIBLE" in found["environment"].split() and "EDITOR" not in found["environment"]
    assert (found["threads"], found["instruction_set"]) == ("2", "avx2")
    assert all(found[package] for package in ("transformers", "peft", "tokenizers", "scikit-learn"))
