"""Load the base model from a folder on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from howto.core.errors import UserError, one_line
from howto.core.hashing import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BASE_HASH_FILE = "base_model.json"  # in an adapter's folder: the hash of the weights that it was trained on
FROM_DISK = {"local_files_only": True, "trust_remote_code": False}


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a Hugging Face folder. Raise UserError if it is damaged or has no chat template."""
    _check_model_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **FROM_DISK)
    except Exception as error:  # the tokenizers library raises bare Exceptions for a damaged file
        raise UserError(f"{folder}: cannot read the tokenizer ({one_line(error)}). {_fix(folder)}") from None
    if not tokenizer.chat_template:
        raise UserError(f"{folder}: the tokenizer has no chat template. Use a chat model as the base.")
    return tokenizer


def load_base(folder: Path, precision: str, device: torch.device) -> PreTrainedModel:
    """Return the causal language model of a Hugging Face folder in evaluation mode.

    `precision` is the name of the weights' torch dtype. Raise UserError if a file is missing or damaged.
    """
    _check_model_folder(folder)
    try:
        dtype = getattr(torch, precision)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, **FROM_DISK)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot read the model ({one_line(error)}). {_fix(folder)}") from None
    return model.to(device).eval()


def weights_sha256(folder: Path) -> str:
    """Return one hash over the safetensors files of a model folder, in the order of their names."""
    digests = [sha256_of(path) for path in sorted(folder.glob("*.safetensors"))]
    return hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()


def _check_model_folder(folder: Path) -> None:
    for path in (folder, folder / "config.json"):
        if not path.exists():
            raise UserError(f"{path}: no such {'folder' if path == folder else 'file'}. {_fix(folder)}")


def _fix(folder: Path) -> str:
    is_base = folder.name == "base"
    return "Make it again with `dvc repro -f fetch_model`." if is_base else "Give a Hugging Face folder."
