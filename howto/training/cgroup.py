"""The memory that a container may still use (control groups of Linux, version 2 and 1).

Files that the kernel caches count as used, and are freed when memory is needed. As Docker and Kubernetes do, those that
were not read for a while are left out.
"""

from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
# The files with the limit, the use and its parts, and the part that is freed when memory is needed.
VERSIONS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def free_in_container() -> list[int]:
    """Return the bytes that each limit leaves; an empty list without limits."""
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
