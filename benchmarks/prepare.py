"""Measure the time and the memory of `prepare` as the number of rows grows tenfold, twice.

python -m benchmarks.prepare FOLDER [--rows 15000 150000 1500000] [--scratch FOLDER]

FOLDER holds real rows in Dolly's columns (JSONL). The measured rows are made from them. In 96 of 100, every third word
of every text is replaced by a word of another row, so that no two rows are similar. 3 of 100 are near-duplicates: one
of the last thousand rows with every fiftieth word of its longest text replaced. 1 of 100 is a copy. The stage runs as
`dvc repro` runs it, with the committed params.yaml. Time is wall-clock from start to exit. Memory is the peak of the
resident set sizes of the stage and its processes together, sampled 20 times a second.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from random import Random

import psutil
from tqdm import tqdm

from howto.core.atomic import write_json

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
COLUMNS = ("instruction", "context", "response")
NEW, NEAR_DUPLICATE = 0.96, 0.99  # cumulative shares; the rest are copies


def main() -> None:
    """Measure each size, print the table and write it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[15_000, 150_000, 1_500_000])
    parser.add_argument("--scratch", type=Path, help="where the rows are made (default: a temporary folder)")
    arguments = parser.parse_args()
    real = [json.loads(line) for path in sorted(arguments.folder.glob("*.jsonl")) for line in path.open("rb")]
    measured = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
            folder = Path(name)
            make_rows(real, rows, folder / "data/raw/rows/rows.jsonl")
            shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
            measured.append(measure(folder, rows))
        print(json.dumps(measured[-1]), flush=True)
    for smaller, larger in pairwise(measured):
        larger["time_ratio"] = round(larger["seconds"] / smaller["seconds"], 2)
        larger["rows_ratio"] = larger["rows"] / smaller["rows"]
    result = {
        "command": "python -m benchmarks.prepare " + " ".join(sys.argv[1:2]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "measured": measured,
    }
    write_json(RESULTS / "prepare.json", result)
    print(json.dumps(result, indent=2))


def make_rows(real: list[dict[str, str]], rows: int, path: Path) -> None:
    """Write rows made from the real ones, with a fixed seed."""
    random = Random(rows)
    # Words beyond ASCII are left out, so that no more rows have some than in the real ones.
    words = sorted({word for row in real for word in row["response"].split(" ") if word.isascii()})
    path.parent.mkdir(parents=True)
    made: list[dict[str, str]] = []  # the last thousand
    with path.open("w", encoding="utf-8") as file:
        for number in tqdm(range(rows), desc=f"make {rows} rows", disable=None):
            draw = random.random()
            if draw < NEW or not made:
                row = dict(real[number % len(real)])
                row |= {column: perturbed(row[column], 1 / 3, words, random) for column in COLUMNS}
                made.append(row)
                del made[:-1000]
            else:
                row = dict(random.choice(made))
                if draw < NEAR_DUPLICATE:
                    longest = max(COLUMNS, key=lambda column: len(row[column]))
                    row[longest] = perturbed(row[longest], 1 / 50, words, random)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def perturbed(text: str, share: float, words: list[str], random: Random) -> str:
    """Return the text with that share of its words, at least one, replaced by others."""
    if not text:
        return text
    parts = text.split(" ")
    for _ in range(max(1, round(share * len(parts)))):
        parts[int(random.random() * len(parts))] = words[int(random.random() * len(words))]
    return " ".join(parts)


def measure(folder: Path, rows: int) -> dict[str, float]:
    """Run the stage in `folder`, and return its time, its memory and its counts."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, "-m", "stages.prepare"], cwd=folder, env=environment) as process:
        peak = max(resident(psutil.Process(process.pid)), *samples(process))
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit("the stage failed")
    counts = json.loads((folder / "metrics/data.json").read_text(encoding="utf-8"))
    return {
        "rows": rows,
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds),
        "peak_memory_mib": round(peak / 2**20),
        "raw_mib": round(sum(path.stat().st_size for path in (folder / "data/raw").rglob("*.jsonl")) / 2**20),
        "kept": counts["rows"]["kept"],
        **{reason: count for reason, count in counts["rejected"].items() if count},
    }


def samples(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """Yield the memory of a process and its children until it ends."""
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        yield resident(watched)
        time.sleep(0.05)


def resident(process: psutil.Process) -> int:
    """Return the bytes that a process and its children hold in memory."""
    total = 0
    for one in [process, *children(process)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def children(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes that a process started, and those that they started."""
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def cpu_name() -> str:
    """Return the name of the CPU."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(": ", 1)[1] for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
