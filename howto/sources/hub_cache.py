"""Where the hub's library keeps what it fetched (https://huggingface.co/docs/hub/local-cache)."""

from __future__ import annotations

import os
from pathlib import Path


def hub_home() -> Path:
    """Its folder, with the cache and the user's token in it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()


def hub_cache() -> Path:
    """The folder of its repositories."""
    return Path(os.environ.get("HF_HUB_CACHE") or hub_home() / "hub").expanduser()


def cached_file(kind: str, repository: str, revision: str | None, name: str) -> Path | None:
    """A file of a repository (of kind models or datasets) in the cache; without a revision, of any."""
    snapshots = hub_cache() / f"{kind}--{repository.replace('/', '--')}" / "snapshots"
    return next(iter(sorted(snapshots.glob(f"{revision or '*'}/{name}"))), None)
