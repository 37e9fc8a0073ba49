"""Checking that a file is the one that params.yaml pins."""

from __future__ import annotations

import hashlib
from pathlib import Path

from howto.stop import Stop


def check_sha256(path: Path, wanted: str | None, said: object) -> str:
    """The sha256 of a file, which is `wanted` unless that is None. `said` names the file in the message.

    Raises:
        Stop: it is another one.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if wanted and digest != wanted:
        raise Stop(
            f"{said}: its sha256 is {digest}, and params.yaml wants {wanted}; "
            "if the new file is right, put its hash there"
        )
    return digest
