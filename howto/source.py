"""What `source` in params.yaml can name."""

from __future__ import annotations

import re
from pathlib import Path

from howto.stop import Stop

# What a model folder is made of: no pickled weights, no code.
MODEL_FILES = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja", "LICENSE*")


def is_local(source: str) -> bool:
    """Whether `source` is a path on this machine (else it is a hub id, `owner/name`).

    Raises:
        Stop: it is neither.
    """
    path = Path(source).expanduser()
    if path.exists() or path.is_absolute() or source.startswith((".", "~")) or path.suffix == ".jsonl":
        return True
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return False
    raise Stop(f"params.yaml: source {source!r} is neither a path nor a hub id (owner/name), nor 'embedded'")
