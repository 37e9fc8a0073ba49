"""Which bytes an adapter has when the CPU's vector instructions are capped in different ways.

python -m benchmarks.instruction_sets FOLDER

FOLDER has models/base and data/prepared of a run, such as this repository after `make run`. The stage trains the same
adapter again and again, one epoch, with `machine.instruction_set` as said and with what the outside world may bring
along: caps in the environment, and (by GLIBC_TUNABLES) a C library that believes to be on a CPU without AVX-512, or
without AVX2 too. Equal hashes are equal bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.prepare import cpu_name
from howto.checksum import sha256_of
from howto.whole import write_json

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "instruction_sets.json"
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
    ("native", {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    ("native", {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}),
]


def main() -> None:
    """Train in every way, and print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    measured = []
    with tempfile.TemporaryDirectory() as name:
        for path in ("models/base", "data/prepared"):
            shutil.copytree(folder / path, Path(name) / path)
        for wanted, outside in WAYS:
            measured.append(train(Path(name), wanted, outside))
            print(json.dumps(measured[-1]), flush=True)
    result = {
        "command": "python -m benchmarks.instruction_sets .",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "measured": measured,
    }
    write_json(RESULT, result)


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


if __name__ == "__main__":
    main()
