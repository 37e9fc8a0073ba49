"""The same bytes on every x86-64 CPU with AVX2 and FMA, whatever its vendor, cores and other instructions."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from howto.core.instruction_set import cpu_name, has_avx2
from tests.conftest import ROOT

EMULATOR = "qemu-x86_64"
OTHER_VENDOR = "EPYC" if "Intel" in cpu_name() else "Haswell"
# What else differs between machines: instructions in the C library, caches, and settings in the environment.
DIFFERENCES = {
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,-EVEX:"
    "glibc.cpu.x86_data_cache_size=16384:glibc.cpu.x86_shared_cache_size=262144",
    "OPENBLAS_L2_SIZE": "128",
    "ATEN_CPU_CAPABILITY": "avx512",
    "MKL_CBWR": "AVX512",
    "NPY_DISABLE_CPU_FEATURES": "",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": "SkylakeX",
    "OPENBLAS_NUM_THREADS": "7",
}
pytestmark = pytest.mark.skipif(not has_avx2(), reason="this is not an x86-64 CPU with AVX2 and FMA")


def hashes(*command: str, **variables: str) -> dict[str, str]:
    """Return what portable_program.py prints: a hash for each result."""
    program = [*command, sys.executable, "-m", "tests.support.portable_program"]
    environment = {**os.environ, **variables}
    done = subprocess.run(program, check=False, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)
    assert len(found) > 90
    return found


@pytest.fixture(scope="module")
def native() -> dict[str, str]:
    return hashes()


@pytest.mark.skipif(shutil.which(EMULATOR) is None, reason="qemu-user is not installed")
def test_an_emulated_cpu_of_the_other_vendor_computes_the_same_bytes(native: dict[str, str]) -> None:
    found = hashes(EMULATOR, "-cpu", OTHER_VENDOR)
    assert [key for key, digest in native.items() if found[key] != digest] == []


@pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed")
def test_cores_caches_and_settings_change_no_byte(native: dict[str, str]) -> None:
    core = min(os.sched_getaffinity(0))
    assert hashes("taskset", "-c", str(core), **DIFFERENCES) == native
