"""The same bytes on every x86-64 CPU with AVX2 and FMA, for what is computed in float32.

Left alone, numerical libraries choose their kernels by the CPU that they find: its vector width, its maker, its number
of cores. Each kernel sums in another order, so each rounds otherwise. Here every library is given one choice that all
of these CPUs have:

- torch's own kernels and oneDNN: AVX2.
- MKL, which tells Intel's CPUs from others: COMPATIBLE, the one mode of its conditional numerical reproducibility that
  holds on all makers' CPUs. It halves the speed of matrix products.
- So torch's matrix products of float32 are computed by the OpenBLAS that NumPy ships, with its kernels for Haswell.
  These take no longer than MKL's fastest.
- NumPy's own kernels: AVX2. SciPy's OpenBLAS: as NumPy's.

A variable of the environment is read when its library is loaded, so `set_environment` comes before any such import.
"""

from __future__ import annotations

import os
import platform
import re
import warnings
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from howto.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

CPUINFO = Path("/proc/cpuinfo")
NAMES = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant", "CPU revision")
ARITHMETIC = re.compile("(sse|ssse|avx|fma|f16c|amx|asimd|sve|bf16|i8mm|fphp)")
KERNELS = "Haswell"  # OpenBLAS's name of its kernels for AVX2 and FMA
NUMPY = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": KERNELS,
    "OPENBLAS_NUM_THREADS": "1",  # whatever the number of cores; `use_openblas` asks for more
    # Idle threads wait actively for 2 ** 16 cycles (25 us), then sleep. With the default of 2 ** 26, torch starves.
    "OPENBLAS_THREAD_TIMEOUT": "16",
}
TORCH = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def set_environment() -> None:
    """Choose the kernels of NumPy and SciPy, for this process and those that it starts. Other CPUs keep their own."""
    if has_avx2():
        os.environ.update(NUMPY)


def set_torch_environment() -> None:
    """Choose the kernels of torch, for this process and those that it starts."""
    if has_avx2():
        os.environ.update(TORCH)


def has_avx2() -> bool:
    """Return whether this is an x86-64 CPU with AVX2 and FMA."""
    return {"avx2", "fma"} <= set(cpu()[1].split())


def use_openblas(threads: int) -> None:
    """Let NumPy's OpenBLAS compute torch's matrix products of float32 on the CPU, with so many threads.

    Raises:
        UserError: this CPU lacks AVX2 or FMA, or OpenBLAS does not use its kernels for them.
    """
    if not has_avx2():
        raise UserError(
            f"params.yaml: machine.instruction_set: portable needs an x86-64 CPU with AVX2 and FMA, this is "
            f"{cpu()[0].split(',')[0]}. Set it to native; the bytes are then those of this CPU."
        )

    import numpy as np
    from threadpoolctl import ThreadpoolController

    blas = ThreadpoolController().select(internal_api="openblas")
    found = sorted({str(library["architecture"]) for library in blas.info()})
    if found != [KERNELS]:
        raise UserError(
            f"params.yaml: machine.instruction_set: portable needs OpenBLAS with its kernels for {KERNELS}, NumPy "
            f"{np.__version__} uses {', '.join(found) or 'another library'}. Install what requirements.lock has. "
            "In a program of your own, import howto before NumPy."
        )
    blas.limit(limits=threads)  # unlike the variable, this may be more than there are cores
    _register()


@cache
def _register() -> torch.library.Library:
    """Replace torch's kernels; they stay replaced as long as what is returned is there."""
    import torch

    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
        for name in ("mm", "bmm"):
            for overload, kernel in ((name, _product), (f"{name}.out", _product_into)):
                before = torch.library.get_kernel(f"aten::{overload}", "CPU")
                library.impl(overload, partial(kernel, before), "CPU", with_keyset=True)  # type: ignore[no-untyped-call]
    return library


def _product(before: Any, keys: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[..., n, k] times [..., k, m]; what is not float32, or does not fit, goes to the kernel from `before`."""
    if not _fits(a, b):
        return before.call_boxed(keys, a, b)  # type: ignore[no-any-return]
    return _multiply(a, b, a.new_empty(*a.shape[:-1], b.shape[-1]))


def _product_into(before: Any, keys: Any, a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
    if not _fits(a, b) or out.shape != (*a.shape[:-1], b.shape[-1]):
        return before.call_boxed(keys, a, b, out=out)  # type: ignore[no-any-return]
    return _multiply(a, b, out)


def _fits(a: torch.Tensor, b: torch.Tensor) -> bool:
    same_kind = a.dtype == b.dtype and str(a.dtype) == "torch.float32"
    return same_kind and a.shape[-1] == b.shape[-2] and a.shape[:-2] == b.shape[:-2]


def _multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    import numpy as np

    a, b = _laid_out(a), _laid_out(b)
    np.matmul(_array(a), _array(b), out=_array(out))
    return out


def _laid_out(matrix: torch.Tensor) -> torch.Tensor:
    """Return a matrix, or a batch of them, or a copy whose layout BLAS can take."""
    *_, rows, columns = matrix.shape
    down, along = matrix.stride()[-2:]
    fits = (along == 1 and down >= columns) or (down == 1 and along >= rows)
    return matrix if fits else matrix.clone()


def _array(matrix: torch.Tensor) -> NDArray[np.float32]:
    """Return NumPy's array of the same memory. `Tensor.numpy` would forbid that the memory is ever resized (FSDP)."""
    import numpy as np

    interface = {
        "version": 3,
        "typestr": "<f4",
        "shape": tuple(matrix.shape),
        "strides": tuple(4 * step for step in matrix.stride()),
        "data": (matrix.data_ptr(), False),
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def cpu() -> tuple[str, str]:
    """Its model, and its instructions that compute with numbers, as far as the system says."""
    try:
        first = CPUINFO.read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return platform.processor() or platform.machine(), ""
    facts = dict(re.findall(r"^(.*?)\s*: (.*)$", first, re.MULTILINE))
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    named = ", ".join(facts[key] for key in NAMES if key in facts)
    return named, " ".join(sorted(flag for flag in flags if ARITHMETIC.match(flag)))
