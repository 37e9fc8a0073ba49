"""Which CPU this is, and what it computes with: what decides how it rounds. Needs nothing that is not Python's own."""

from __future__ import annotations

import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
NAMES = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant", "CPU revision")
ARITHMETIC = re.compile("(sse|ssse|avx|fma|f16c|amx|asimd|sve|bf16|i8mm|fphp)")


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
