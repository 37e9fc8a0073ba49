"""Compare the results of a fresh run with the committed ones.

    compare.py COMMITTED FRESH      two project folders
    compare.py --record             write down this CPU, as that of the results in metrics/

On a CPU of the committed kind every hash in dvc.lock must be the same. Another CPU may round otherwise, which over a
thousand steps of training amounts to another seed. There what is made without floating-point arithmetic still has to be
the same byte for byte, and ROUGE-L has to be as near as near-equal set-ups are to each other (0.53 to 0.66).
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

from ruamel.yaml import YAML

TOLERANCE = 0.13
EXACT = ("data/raw", "data/prepared", "metrics/data.json", "metrics/lengths.csv", "metrics/categories.csv")
CPU = Path("metrics/cpu.txt")


def cpu() -> str:
    """What decides how this CPU rounds: its model, and the vector instructions that it offers and that torch uses."""
    import torch

    first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    facts = dict(re.findall(r"^(.*?)\s*: (.*)$", first, re.MULTILINE))
    named = [facts.get(key, "?") for key in ("model name", "cpu family", "model", "stepping")]
    flags = hashlib.sha256(" ".join(sorted(facts.get("flags", "").split())).encode()).hexdigest()[:8]
    return f"{', '.join(named)}, flags {flags}, {torch.backends.cpu.get_cpu_capability()}"


def outputs(folder: Path) -> dict[str, str]:
    """The hash of every output in dvc.lock."""
    lock = YAML(typ="safe").load((folder / "dvc.lock").read_text(encoding="utf-8"))
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def scores(folder: Path) -> dict[str, float]:
    """ROUGE-L of both models."""
    metrics = json.loads((folder / "metrics/metrics.json").read_text(encoding="utf-8"))
    return {model: metrics[model]["rougeL"] for model in ("base", "adapter")}


def main(committed: Path, fresh: Path) -> int:
    """Print what differs; 0 if the committed results were made again."""
    before, after = outputs(committed), outputs(fresh)
    different = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    if not different:
        print(f"reproduced: all {len(after)} outputs have the committed hashes")
        return 0
    print(f"not the committed bytes: {', '.join(different)}")
    made_on = (committed / CPU).read_text(encoding="utf-8").strip()
    if made_on == cpu():
        print(f"and this is the CPU that they were made on ({made_on}): FAILED")
        return 1
    print(f"they were made on another CPU ({made_on}; this is {cpu()}), so ROUGE-L has to be within {TOLERANCE}")
    if wrong := [path for path in different if path in EXACT]:
        print(f"but no arithmetic of a CPU is behind {', '.join(wrong)}: FAILED")
        return 1
    old, new = scores(committed), scores(fresh)
    for model, score in new.items():
        print(f"  {model}: {old[model]:.4f} committed, {score:.4f} now")
    return int(any(abs(new[model] - old[model]) > TOLERANCE for model in new))


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        CPU.write_text(cpu() + "\n", encoding="utf-8")
    else:
        sys.exit(main(*map(Path, sys.argv[1:3])))
