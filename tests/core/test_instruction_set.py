"""The same bytes on every x86-64 CPU with AVX2 and FMA, whatever its maker, cores and further instructions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from howto.core.errors import UserError
from howto.core.instruction_set import has_avx2, use_openblas
from tests.conftest import ROOT

EMULATOR = "qemu-x86_64"
CPUS = ("Haswell", "Skylake-Client", "EPYC")
NO_AVX512 = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,-EVEX"
ELSEWHERE = {
    "no AVX-512 in the C library": {"GLIBC_TUNABLES": NO_AVX512},
    "other caches": {
        "OPENBLAS_L2_SIZE": "128",
        "GLIBC_TUNABLES": "glibc.cpu.x86_data_cache_size=16384:glibc.cpu.x86_shared_cache_size=262144",
    },
    "other settings in the environment": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_CBWR": "AVX512",
        "NPY_DISABLE_CPU_FEATURES": "",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_CORETYPE": "SkylakeX",
        "OPENBLAS_NUM_THREADS": "7",
    },
}
pytestmark = pytest.mark.skipif(not has_avx2(), reason="this CPU is no x86-64 one with AVX2 and FMA")


def hashes(*command: str, **variables: str) -> dict[str, str]:
    """What portable_program.py prints."""
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.support.portable_program"],
        check=False,
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    assert len(found) > 100
    return found


@pytest.fixture(scope="module")
def native() -> dict[str, str]:
    return hashes()


@pytest.mark.skipif(shutil.which(EMULATOR) is None, reason="qemu-user is not installed")
def test_emulated_cpus_of_other_makers_and_years_compute_the_same_bytes(native: dict[str, str]) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda name: hashes(EMULATOR, "-cpu", name), CPUS))
    differing = {
        name: [key for key, digest in native.items() if of_cpu[key] != digest]
        for name, of_cpu in zip(CPUS, found, strict=True)
    }
    assert differing == {name: [] for name in CPUS}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_else_differs_between_machines_changes_no_byte(native: dict[str, str], name: str) -> None:
    assert hashes(**ELSEWHERE[name]) == native


@pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed")
def test_the_number_of_cores_changes_no_byte(native: dict[str, str]) -> None:
    core = min(os.sched_getaffinity(0))
    assert hashes("taskset", "-c", str(core)) == native


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_torch_for_any_layout(dtype: torch.dtype) -> None:
    use_openblas(2)
    wide, tall = torch.randn(7, 12, dtype=dtype), torch.randn(12, 5, dtype=dtype)
    for a, b in (
        (wide, tall),
        (wide[:, ::2], tall[::2]),
        (wide[1:2], tall),
        (wide, tall[:, :1]),
        (wide[:0], tall),
        (wide[:, :0], tall[:0]),
        (torch.ones(1, dtype=dtype).expand(7, 12), tall),
        (tall.T, wide.T),
    ):
        expected = torch.einsum("ik,kj->ij", a.double(), b.double())
        torch.testing.assert_close(a @ b, expected.to(dtype))
        torch.testing.assert_close(torch.mm(a, b, out=torch.empty(expected.shape, dtype=dtype)), expected.to(dtype))
        batch = torch.bmm(a.expand(3, *a.shape), b.expand(3, *b.shape))
        torch.testing.assert_close(batch, expected.to(dtype).expand(3, *expected.shape))
    torch.testing.assert_close(torch.mm(wide, tall, out=torch.empty(12, 7, dtype=dtype).T[:, :5]), wide @ tall)
    weight = tall.clone().requires_grad_()
    torch.autograd.backward((wide @ weight).sum())
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, wide.sum(dim=0)[:, None].expand(12, 5))
    with torch.inference_mode():
        torch.testing.assert_close(wide @ tall, (wide @ weight).detach())


def test_a_cpu_without_avx2_is_told_so_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: Old CPU\nflags\t\t: fpu sse2 avx\n", encoding="utf-8")
    monkeypatch.setattr("howto.core.instruction_set.CPUINFO", tmp_path / "cpuinfo")
    with pytest.raises(UserError, match=r"machine\.instruction_set: portable needs .* this is Old CPU\."):
        use_openblas(1)


def test_numpy_that_was_loaded_with_other_kernels_is_an_error() -> None:
    code = "import numpy; from howto.core.instruction_set import use_openblas; use_openblas(1)"
    environment = {**os.environ, "OPENBLAS_CORETYPE": "Sandybridge"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "needs OpenBLAS with its kernels for Haswell" in done.stderr and "uses Sandybridge" in done.stderr
