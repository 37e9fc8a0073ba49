"""sha256 of files, checked against the hashes in params.yaml."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from howto.core.errors import UserError


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(folder: Path, names: Sequence[str]) -> str:
    """Return the sha256 of one file, or for several the sha256 of what `sha256sum` prints for them, sorted by name.

    `sha256sum` prints a line "<sha256>  <name>" for each file. Names are relative to `folder`.
    """
    if len(names) == 1:
        return sha256_of(folder / names[0])
    listing = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in sorted(names))
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def check_sha256(folder: Path, names: Sequence[str], expected: str | None, label: str) -> str:
    """Return the sha256 of the files. If there is an `expected` one, compare the two first.

    Raise UserError if they differ. The message calls the files `label`.
    """
    digest = sha256_of_all(folder, names)
    if expected and digest != expected:
        raise UserError(
            f"{label}: expected sha256 {expected}, got {digest}. If the new "
            f"{'file is' if len(names) == 1 else 'files are'} right, put the new hash into params.yaml."
        )
    return digest
