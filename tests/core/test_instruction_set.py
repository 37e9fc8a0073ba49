"""NumPy's OpenBLAS computes torch's float32 products, or says in one line why it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from howto.core.errors import UserError
from howto.core.instruction_set import has_avx2, use_openblas
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not has_avx2(), reason="this is not an x86-64 CPU with AVX2 and FMA")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_equal_torchs_for_any_memory_layout(dtype: torch.dtype) -> None:
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


def test_a_cpu_without_avx2_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name\t: Old CPU\nflags\t\t: fpu sse2 avx\n", encoding="utf-8")
    monkeypatch.setattr("howto.core.instruction_set.CPUINFO", tmp_path / "cpuinfo")
    with pytest.raises(UserError, match=r"machine\.instruction_set: portable needs .* got Old CPU\."):
        use_openblas(1)


def test_numpy_loaded_with_other_kernels_is_an_error() -> None:
    code = "import numpy; from howto.core.instruction_set import use_openblas; use_openblas(1)"
    environment = {**os.environ, "OPENBLAS_CORETYPE": "Sandybridge"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "needs OpenBLAS with its Haswell kernels" in done.stderr and "uses Sandybridge" in done.stderr
