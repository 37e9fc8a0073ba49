"""The files of a Hugging Face model, and whether they are complete."""

import json
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from howto.core.errors import UserError, one_line

# No pickled weights, no code, and of the weights those that transformers loads.
WEIGHTS = ("model.safetensors", "model-*.safetensors")
TOKENIZER = ("tokenizer.model", "vocab.txt", "merges.txt", "*.jinja")
MODEL_FILES = (*WEIGHTS, *TOKENIZER, "*.json", "LICENSE", "LICENSE.txt", "LICENSE.md")
INDEX = "model.safetensors.index.json"


def model_files(names: Iterable[str], source: str) -> list[str]:
    """Return the files of a folder or a repository that a model consists of. Sub-folders hold it in other formats.

    Raise UserError if there is no configuration, there are no weights, or no tokenizer that loads without conversion.
    """
    names = [name for name in sorted(names) if "/" not in name and _matches(name, MODEL_FILES)]
    if "config.json" not in names:
        raise UserError(f"{source}: not a Hugging Face model (no config.json). Correct model.source in params.yaml.")
    if not any(_matches(name, WEIGHTS) for name in names):
        raise UserError(
            f"{source}: no model.safetensors weights, and pickled ones (.bin) are not loaded. Convert them, or take "
            "another model in params.yaml."
        )
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= set(names):
        raise UserError(
            f"{source}: no tokenizer.json, and a tokenizer.model alone is not read. Write one where SentencePiece is "
            "installed: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
        )
    return names


def check_model(folder: Path, source: str) -> list[str]:
    """Return the names of the weights in a Hugging Face folder. `source` names the folder in messages.

    Raise UserError if weights are missing or damaged.
    """
    weights = sorted(path.name for path in folder.iterdir() if _matches(path.name, WEIGHTS))
    if (folder / INDEX).is_file():
        shards = set(read_object(folder / INDEX, source).get("weight_map", {}).values())
        if missing := sorted(shards - set(weights)):
            raise UserError(f"{source}: {missing[0]} is missing, which {INDEX} names. Fetch the complete model.")
    for name in weights:
        _check_weights(folder / name, source)
    return weights


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_weights(path: Path, source: str) -> None:
    """Check that the header is one of safetensors, and that the file has the length that it gives."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        problem = "a git-lfs pointer" if path.read_bytes()[:8] == b"version " else one_line(error)
        raise UserError(f"{source}/{path.name}: not complete safetensors ({problem}). Fetch the file again.") from None


def read_object(path: Path, source: str) -> dict[str, Any]:
    """Return the object in a JSON file of the model. Raise UserError if it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{source}/{path.name}: not a JSON object. Fetch the file again.")
    return value
