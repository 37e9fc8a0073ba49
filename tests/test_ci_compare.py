"""CI is green where the committed results were made again, and red where they were not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

THIS_CPU, OTHER_CPU = None, "another CPU"


def project(folder: Path, digest: str, score: float, path: str = "models/adapter") -> Path:
    (folder / "metrics").mkdir(parents=True)
    lock = f"stages:\n  train:\n    outs:\n    - path: {path}\n      md5: {digest}\n"
    (folder / "dvc.lock").write_text(lock, encoding="utf-8")
    metrics = {"base": {"rougeL": 0.1}, "adapter": {"rougeL": score}}
    (folder / "metrics/metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return folder


def compare(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci/compare.py"), *arguments]
    return subprocess.run(command, check=False, cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("digest", "score", "cpu", "status", "said"),
    [
        ("aaaa", 0.6, THIS_CPU, 0, "reproduced: all 1 outputs"),
        ("bbbb", 0.6, THIS_CPU, 1, "not the committed bytes: models/adapter"),
        ("bbbb", 0.55, OTHER_CPU, 0, "0.6000 committed, 0.5500 now"),
        ("bbbb", 0.46, OTHER_CPU, 1, "0.6000 committed, 0.4600 now"),
    ],
)
def test_the_verdict(tmp_path: Path, digest: str, score: float, cpu: str | None, status: int, said: str) -> None:
    committed = project(tmp_path / "committed", "aaaa", 0.6)
    fresh = project(tmp_path / "fresh", digest, score)
    if cpu is None:
        assert compare("--record", cwd=committed).returncode == 0
    else:
        (committed / "metrics/cpu.txt").write_text(cpu, encoding="utf-8")
    done = compare(str(committed), str(fresh), cwd=tmp_path)
    assert done.returncode == status, done.stderr
    assert said in done.stdout


def test_prepared_rows_are_the_same_on_every_cpu(tmp_path: Path) -> None:
    committed = project(tmp_path / "committed", "aaaa", 0.6, "data/prepared")
    fresh = project(tmp_path / "fresh", "bbbb", 0.6, "data/prepared")
    (committed / "metrics/cpu.txt").write_text(OTHER_CPU, encoding="utf-8")
    done = compare(str(committed), str(fresh), cwd=tmp_path)
    assert done.returncode == 1 and "no arithmetic of a CPU is behind data/prepared" in done.stdout
