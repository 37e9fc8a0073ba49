"""The script that checks a GPU runs on a CPU too, so that on a GPU it is never the script that fails."""

import json
import sys
from pathlib import Path

from tests.conftest import ROOT, call


def test_sections_run_on_a_cpu(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.gpu_check", str(tiny / "model"), "--rows", str(tiny / "rows.jsonl")]
    command += ["--device", "cpu", "--tiny", "--sections", "ABCHJDFGIL", "--output", str(output)]
    done = call(ROOT, *command, TORCHINDUCTOR_VEC_ISA_OK="1")  # no trial of each instruction set
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text(encoding="utf-8"))["sections"]
    assert list(found) == list("ABCHJDFGIL")
    assert found["B"]["4_heads_of_keys"]["same_bits"] and found["I"]["same_adapter_twice"]
    assert found["L"]["same_adapter"] and found["L"]["same_score_twice"]
    assert found["D"]["packed"]["most"] < 1e-4 and found["D"]["leaking"]["least"] > 0.1
    assert found["J"]["transformers"]["tokens_per_second"] > 0
