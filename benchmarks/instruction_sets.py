"""Which bytes an adapter has when the CPU's vector instructions are capped in different ways.

python -m benchmarks.instruction_sets FOLDER

FOLDER has models/base and data/prepared of a run, such as this repository after `make run`. The stage trains the same
adapter again and again, one epoch, with `machine.instruction_set` as said and with what the outside world may bring
along: caps in the environment, and (by GLIBC_TUNABLES) a C library that believes to be on a CPU without AVX-512, or
without AVX2 too. Equal hashes are equal bytes.

Beside it stand the hashes of single operations, on numbers that are the same everywhere: the results of two machines,
laid side by side, say which operation rounds otherwise. Results are kept by the name of the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.prepare import cpu_name
from howto.checksum import sha256_of
from howto.params.machine import Machine, ProfileMachine
from howto.whole import write_json

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
NO_AVX512 = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,-EVEX"
WAYS: list[tuple[str, dict[str, str]]] = [
    ("avx2", {}),
    ("avx2", {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_CBWR": "AVX512"}),
    ("avx2", {"GLIBC_TUNABLES": NO_AVX512}),
    ("avx2", {"GLIBC_TUNABLES": f"{NO_AVX512},-AVX2,-FMA"}),
    ("native", {}),
    ("native", {"ATEN_CPU_CAPABILITY": "avx2"}),
    ("native", {"MKL_CBWR": "AVX2"}),
    ("native", {"MKL_CBWR": "COMPATIBLE"}),
    ("native", {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"}),
    ("native", {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    ("native", {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}),
]
CAPS: list[dict[str, str]] = [
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"},
    {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
]


def main() -> None:
    """Train in every way, and print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--operations", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.operations:
        print(json.dumps(operations()))
        return
    single = []
    for caps in CAPS:
        command = [sys.executable, "-m", "benchmarks.instruction_sets", ".", "--operations"]
        done = subprocess.run(command, env={**os.environ, **caps}, check=True, stdout=subprocess.PIPE, text=True)
        single.append({"environment": caps, "sha256": json.loads(done.stdout)})
    measured = []
    with tempfile.TemporaryDirectory() as name:
        for path in ("models/base", "data/prepared"):
            shutil.copytree(arguments.folder / path, Path(name) / path)
        for wanted, outside in WAYS:
            measured.append(train(Path(name), wanted, outside))
            print(json.dumps(measured[-1]), flush=True)
    result = {
        "command": "python -m benchmarks.instruction_sets .",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "measured": measured,
        "operations": single,
    }
    slug = re.sub(r"\W+", "_", re.sub(r"\(.*?\)|processor", "", cpu_name(), flags=re.IGNORECASE)).strip("_").lower()
    write_json(RESULTS / f"instruction_sets_{slug}.json", result)


def train(folder: Path, wanted: str, outside: dict[str, str]) -> dict[str, object]:
    """Train once, and give the hash of what came out."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = re.sub(r"instruction_set: \w+", f"instruction_set: {wanted}", text)
    (folder / "params.yaml").write_text(re.sub(r"(      epochs:) \d+", r"\1 1", text, count=1), encoding="utf-8")
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **outside}
    subprocess.run([sys.executable, "-m", "stages.train"], cwd=folder, env=environment, check=True, stdout=sys.stderr)
    return {
        "instruction_set": wanted,
        "environment": outside,
        "adapter_sha256": sha256_of(folder / "models/adapter/adapter_model.safetensors")[:16],
        "seconds": round(time.perf_counter() - start, 1),
    }


def operations() -> dict[str, str]:
    """The hashes of what the operations of a training step give, under the caps that the environment sets."""
    from howto.torch_setup import set_up_torch

    machine = Machine(threads=2, instruction_set="native", deterministic=True)
    set_up_torch(machine, ProfileMachine(device="cpu", precision="float32"))

    import numpy as np
    import torch
    from torch.nn import functional

    def numbers(*shape: int) -> torch.Tensor:
        """In -0.5..0.5, made by integers and one exact product."""
        count = int(np.prod(shape))
        raw = np.random.SFC64(count).random_raw(count) >> np.uint64(40)
        return torch.from_numpy((raw.astype(np.float32) * 2.0**-24 - 0.5).reshape(shape))

    x, wide = numbers(1024, 160), numbers(1024, 3072)
    query, key, value = (numbers(1, 2, 200, 80).requires_grad_() for _ in range(3))

    def attention_backward() -> torch.Tensor:
        functional.scaled_dot_product_attention(query, key, value, is_causal=True).square().sum().backward()  # type: ignore[no-untyped-call]
        gradient = query.grad
        assert gradient is not None
        return gradient

    def normal() -> torch.Tensor:
        return torch.randn(512, 160, generator=torch.Generator().manual_seed(0))

    found: dict[str, Callable[[], torch.Tensor]] = {
        "normal": normal,
        "x @ w.T": lambda: x @ numbers(3072, 160).T,
        "x @ w": lambda: x @ numbers(160, 416),
        "x.T @ y, long": lambda: x.T @ numbers(1024, 416),
        "thin product": lambda: numbers(8, 160) @ x.T,
        "small product": lambda: numbers(8, 160) @ numbers(160, 8),
        "exp": x.exp,
        "silu": lambda: functional.silu(x),
        "softmax": lambda: torch.softmax(wide, dim=1),
        "logsumexp": lambda: wide.logsumexp(dim=1),
        "rms norm": lambda: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        "sum": wide.sum,
        "cos": (x * 100).cos,
        "attention": lambda: functional.scaled_dot_product_attention(query, key, value, is_causal=True),
        "attention, backward": attention_backward,
    }
    return {
        name: hashlib.sha256(compute().detach().contiguous().numpy().tobytes()).hexdigest()[:16]
        for name, compute in found.items()
    }


if __name__ == "__main__":
    main()
