"""Checking that files are the ones that params.yaml pins."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from howto.core.errors import UserError


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_all(folder: Path, names: Sequence[str]) -> str:
    """The sha256 of a file, or of several: then of the text that `sha256sum` prints for them, sorted by name.

    That text has a line "<sha256>  <name>" for each file, and names are relative to `folder`.
    """
    if len(names) == 1:
        return sha256_of(folder / names[0])
    listing = "".join(f"{sha256_of(folder / name)}  {name}\n" for name in sorted(names))
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def check_sha256(folder: Path, names: Sequence[str], wanted: str | None, said: str) -> str:
    """The sha256 of the files, which is `wanted` unless that is None. `said` names them in the message.

    Raises:
        UserError: it is another one.
    """
    digest = sha256_of_all(folder, names)
    if wanted and digest != wanted:
        raise UserError(
            f"{said}: its sha256 is {digest}, and params.yaml wants {wanted}; "
            f"if the new {'file is' if len(names) == 1 else 'files are'} right, put that hash there"
        )
    return digest
