"""A hash of everything a stage reads: it names a run's checkpoints, and shows edits made while the stage ran.

DVC records the inputs of a stage when the stage ends, so an edit made in between would be recorded as if it had been
used. And a checkpoint must never be resumed by a run with other inputs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from howto.core.config import Params, Section
from howto.core.errors import UserError
from howto.core.hashing import sha256_of

ROOT = Path(__file__).parents[2]


class Fingerprint:
    """Files, code and params as they are at this moment."""

    def __init__(
        self, paths: Iterable[Path], params: Params, sections: Iterable[type[Section]], code: Iterable[str]
    ) -> None:
        """Hash `paths` (files and folders), the params in `sections`, and `code` (paths from the project's root)."""
        self._paths = list(paths)
        self._params = params
        self._sections = list(sections)
        self._code = {path: sha256_of(path) for path in _modules(code)}
        self._files = {path: (_seen(path), sha256_of(path)) for path in _files(self._paths)}

    def parts(self, **more: str) -> dict[str, str]:
        """What the inputs are, by name: a hash of each file, the value of each param, and `more`."""
        params = _flat(self._used(self._params))
        return {
            **{str(path.relative_to(ROOT)): digest for path, digest in self._code.items()},
            **{str(path): digest for path, (_, digest) in self._files.items()},
            **{f"{self._params.path} ({key})": json.dumps(value) for key, value in params.items()},
            **more,
        }

    def key(self, *, but: str = "", **more: str) -> str:
        """16 hexadecimal digits that change with any of it, but for the param `but`, and with any of `more`."""
        parts = self.parts(**more)
        parts.pop(f"{self._params.path} ({but.replace('*', self._params.profile)})", None)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Stop if something is no longer as it was.

        Raises:
            UserError: the message names what moved.
        """
        moved = [str(path) for path, digest in self._code.items() if _moved(path, digest)]
        now = set(_files(self._paths))
        moved += sorted(str(path) for path in now ^ self._files.keys())
        for path in sorted(now & self._files.keys()):
            seen, digest = self._files[path]
            if _seen(path) != seen and _moved(path, digest):
                moved.append(str(path))
        before, after = self._used(self._params), self._used(self._params.reread())
        moved += [f"{self._params.path} ({key})" for key in _different(before, after)]
        if moved:
            raise UserError(f"{', '.join(moved)}: changed while the stage ran; nothing was kept, run it again")

    def _used(self, params: Params) -> dict[str, Any]:
        return {kind.key.replace("*", params.profile): params.section(kind).model_dump() for kind in self._sections}


def _different(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The dotted keys whose values are not the same."""
    one, other = _flat(before), _flat(after)
    return sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves, by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves


def _modules(code: Iterable[str]) -> list[Path]:
    return [path for path in _files([ROOT / name for name in code]) if "__pycache__" not in path.parts]


def _files(paths: list[Path]) -> list[Path]:
    return sorted(file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _seen(path: Path) -> tuple[int, ...]:
    """What changes when a file is written: cheaper than to read it."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino


def _moved(path: Path, digest: str) -> bool:
    return not path.is_file() or sha256_of(path) != digest
