"""What a container may still take of its machine's memory (control groups of Linux, version 2 and 1).

Files that the kernel keeps in memory count as taken there, and are given back where memory is wanted: those that nobody
has read for a while are left out, as Docker and Kubernetes do.
"""

from __future__ import annotations

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
# Where limit, use and its parts stand, and what the part is called that is given back.
VERSIONS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def free_in_container() -> list[int]:
    """Bytes that each limit leaves; nothing where there is none."""
    free = []
    for limit, used, parts, cached in VERSIONS:
        try:
            most, taken = (int((CGROUP / name).read_text(encoding="ascii")) for name in (limit, used))
        except (OSError, ValueError):  # no such file, or "max"
            continue
        free.append(most - taken + _part(CGROUP / parts, cached))
    return free


def _part(path: Path, name: str) -> int:
    try:
        parts = dict(line.split() for line in path.read_text(encoding="ascii").splitlines())
        return int(parts[name])
    except (OSError, ValueError, KeyError):
        return 0
