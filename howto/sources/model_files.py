"""Whether a folder is a whole model that can be loaded without code of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from howto.core.errors import UserError
from howto.sources.files import weight_files

INDEX = "model.safetensors.index.json"


def check_model(folder: Path, said: str) -> list[str]:
    """The names of the weights in a Hugging Face folder. `said` names the folder in messages.

    Raises:
        UserError: weights are missing or damaged, or the model wants to run code that came with it.
    """
    weights = weight_files(sorted(path.name for path in folder.iterdir()))
    if (folder / INDEX).is_file():
        shards = set(_read(folder / INDEX, said).get("weight_map", {}).values())
        if missing := sorted(shards - set(weights)):
            raise UserError(f"{said}: {missing[0]} is missing, which {INDEX} names; bring the whole model")
    for name in weights:
        _check_weights(folder / name, said)
    config = _read(folder / "config.json", said)
    if "auto_map" in config:
        # Many a model keeps that key after transformers has learned to load it.
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

        if config.get("model_type") not in CONFIG_MAPPING_NAMES:
            raise UserError(
                f"{said}: config.json asks for code from the repository (auto_map), and none is run here; "
                "take a model of an architecture that transformers has"
            )
    return weights


def _check_weights(path: Path, said: str) -> None:
    """The header is one of safetensors, and the file is as long as it says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        problem = "a git-lfs pointer" if path.read_bytes()[:8] == b"version " else str(error).splitlines()[0]
        raise UserError(
            f"{said}/{path.name}: not whole safetensors weights ({problem}); bring the file again"
        ) from None


def _read(path: Path, said: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{said}/{path.name}: not a JSON object; bring the file again")
    return value
