"""The same float32 results, byte for byte, on every x86-64 CPU with AVX2 and FMA.

By default, numerical libraries choose their kernels by the CPU: its vector width, its vendor, its number of cores. Each
kernel sums in a different order, so results differ in the last digits. Here every library gets one choice that all
these CPUs support:

- torch's own kernels and oneDNN: AVX2.
- MKL, which treats Intel's CPUs differently: COMPATIBLE, its only mode of conditional numerical reproducibility that
  holds on the CPUs of all vendors. It halves the speed of matrix products.
- Therefore NumPy's OpenBLAS, with its Haswell kernels, computes torch's float32 matrix products. It is as fast as MKL's
  fastest kernels.
- NumPy's own kernels: AVX2. SciPy's OpenBLAS: as NumPy's.

A library reads its environment variables when it is loaded, so `set_environment` must run before it is imported.
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
KERNELS = "Haswell"  # OpenBLAS's name for its AVX2 and FMA kernels
NUMPY = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": KERNELS,
    "OPENBLAS_NUM_THREADS": "1",  # independent of the number of cores; `use_openblas` raises it
    # Idle threads spin for 2 ** 16 cycles (25 us), then sleep. With the default of 2 ** 26 they starve torch.
    "OPENBLAS_THREAD_TIMEOUT": "16",
}
TORCH = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def set_environment() -> None:
    """Choose the kernels of NumPy and SciPy for this process and its children. CPUs without AVX2 keep their own."""
    if has_avx2():
        os.environ.update(NUMPY)


def set_torch_environment() -> None:
    """Choose the kernels of torch for this process and its children."""
    if has_avx2():
        os.environ.update(TORCH)


def has_avx2() -> bool:
    """Return whether this is an x86-64 CPU with AVX2 and FMA."""
    return {"avx2", "fma"} <= set(_cpu_facts().get("flags", "").split())


def use_openblas(threads: int) -> None:
    """Let NumPy's OpenBLAS compute torch's float32 matrix products on the CPU, with so many threads.

    Raise UserError if this CPU lacks AVX2 or FMA, or NumPy's OpenBLAS does not use its Haswell kernels.
    """
    if not has_avx2():
        raise UserError(
            f"params.yaml: machine.instruction_set: portable needs an x86-64 CPU with AVX2 and FMA, got "
            f"{cpu_name()}. Set it to native; results are then specific to this CPU."
        )

    import numpy as np
    from threadpoolctl import ThreadpoolController

    blas = ThreadpoolController().select(internal_api="openblas")
    found = sorted({str(library["architecture"]) for library in blas.info()})
    if found != [KERNELS]:
        raise UserError(
            f"params.yaml: machine.instruction_set: portable needs OpenBLAS with its {KERNELS} kernels, but NumPy "
            f"{np.__version__} uses {', '.join(found) or 'another library'}. Install requirements.lock. "
            "In your own program, import howto before NumPy."
        )
    blas.limit(limits=threads)  # unlike the variable, this may be more than there are cores
    _register()


@cache
def _register() -> torch.library.Library:
    """Replace torch's kernels for as long as the returned object exists."""
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
    """Multiply [..., n, k] by [..., k, m]. Other dtypes and shapes go to torch's kernel, `before`."""
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

    a, b = _blas_layout(a), _blas_layout(b)
    np.matmul(_array(a), _array(b), out=_array(out))
    return out


def _blas_layout(matrix: torch.Tensor) -> torch.Tensor:
    """Return the matrices, or a copy of them if BLAS cannot take their memory layout."""
    *_, rows, columns = matrix.shape
    down, along = matrix.stride()[-2:]
    fits = (along == 1 and down >= columns) or (down == 1 and along >= rows)
    return matrix if fits else matrix.clone()


def _array(matrix: torch.Tensor) -> NDArray[np.float32]:
    """Return a NumPy view of the memory. `Tensor.numpy` would forbid FSDP to resize it."""
    import numpy as np

    interface = {
        "version": 3,
        "typestr": "<f4",
        "shape": tuple(matrix.shape),
        "strides": tuple(4 * step for step in matrix.stride()),
        "data": (matrix.data_ptr(), False),
    }
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def cpu_name() -> str:
    """Return the CPU's model, as far as the system reports it."""
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


def _cpu_facts() -> dict[str, str]:
    """Return what Linux says of the first core; nothing on other systems."""
    try:
        first = CPUINFO.read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    return dict(re.findall(r"^(.*?)\s*: (.*)$", first, re.MULTILINE))
