"""The script that checks a GPU runs on a CPU too, so that on a GPU it is never the script that fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_sections_run_on_a_cpu(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.gpu_check", str(tiny / "model"), "--rows", str(tiny / "rows.jsonl")]
    command += ["--device", "cpu", "--tiny", "--sections", "ABCHJDFGI", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text(encoding="utf-8"))["sections"]
    assert list(found) == list("ABCHJDFGI")
    assert found["B"]["4_heads_of_keys"]["same_bits"]
    assert found["D"]["packed"]["most"] < 1e-4
    assert found["D"]["leaking"]["least"] > 0.1
    assert found["D"]["compiled"] and found["D"]["head"]
    assert found["I"]["real"]["tokens_per_second"] > 0
    assert found["I"]["same_adapter_twice"]
    assert found["F"]["kernels_per_step"] > 0
    assert found["J"]["transformers"]["tokens_per_second"] > 0
    assert found["H"]["base, first run"]["answers"] == 16
