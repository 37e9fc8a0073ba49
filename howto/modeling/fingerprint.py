"""Hash everything a stage reads: the hash names a run's checkpoints and detects edits made while the stage ran.

DVC records the inputs of a stage when the stage ends, so it would record an edit made in between as if it had been
used. And a run with other inputs must never resume a checkpoint.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from howto.core.config import Params, Section
from howto.core.errors import UserError
from howto.core.hashing import sha256_of

ROOT = Path(__file__).parents[2]


class Fingerprint:
    """Files, code and params as they are when this is made."""

    def __init__(
        self, paths: Iterable[Path], params: Params, sections: Iterable[type[Section]], code: Iterable[str]
    ) -> None:
        """Hash `paths` (files and folders), the params in `sections`, and `code` (paths from the project's root)."""
        self._paths, self._params, self._sections, self._code = list(paths), params, list(sections), list(code)
        self._parts = self._read(params)

    def parts(self, **more: str) -> dict[str, str]:
        """Return the inputs by name: the hash of each file, the value of each param, and `more`."""
        return {**self._parts, **more}

    def key(self, *, ignoring: str = "", **more: str) -> str:
        """Return 16 hexadecimal digits that change with any part and any of `more`, except the param `ignoring`."""
        parts = self.parts(**more)
        parts.pop(f"{self._params.path} ({ignoring.replace('*', self._params.profile)})", None)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def check(self) -> None:
        """Check that all is as it was.

        Raise UserError if something changed; the message names it.
        """
        before, now = self._parts, self._read(self._params.reread())
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if changed:
            raise UserError(f"{', '.join(changed)}: changed while the stage ran. Nothing was kept. Run it again.")

    def _read(self, params: Params) -> dict[str, str]:
        modules = [path for path in _files(ROOT / name for name in self._code) if "__pycache__" not in path.parts]
        values = {
            f"{kind.key.replace('*', params.profile)}.{name}": value
            for kind in self._sections
            for name, value in params.section(kind).model_dump().items()
        }
        return {
            **{str(path.relative_to(ROOT)): sha256_of(path) for path in modules},
            **{str(path): sha256_of(path) for path in _files(self._paths)},
            **{f"{params.path} ({key})": json.dumps(value) for key, value in values.items()},
        }


def _files(paths: Iterable[Path]) -> list[Path]:
    return sorted(file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
