"""sha256 of files, checked against the hashes in params.yaml."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from howto.core.errors import UserError


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(folder: Path, names: Sequence[str], expected: str | None, label: str) -> str:
    """Return the sha256 of the file, or for several the sha256 of what `sha256sum` prints for them, sorted by name.

    `names` are relative to `folder`. Raise UserError if another one is `expected`; the message calls the files `label`.
    """
    digest = sha256_of(folder / names[0])
    if len(names) > 1:
        listing = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in sorted(names))
        digest = hashlib.sha256(os.fsencode(listing)).hexdigest()
    if expected and digest != expected:
        raise UserError(
            f"{label}: expected sha256 {expected}, got {digest}. If the new "
            f"{'file is' if len(names) == 1 else 'files are'} right, put the new hash into params.yaml."
        )
    return digest
