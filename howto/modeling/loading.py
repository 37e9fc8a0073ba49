"""Load the base model from a folder on disk."""

from __future__ import annotations

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from howto.core.errors import UserError, is_out_of_memory, one_line
from howto.core.hashing import sha256_of
from howto.modeling.chat import Chat

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

BASE_HASH_FILE = "base_model.json"  # in an adapter's folder: the hash of the weights that it was trained on
CHAT_FILE = "chat.json"  # in a base's folder, if params.yaml gives a date for its chat template
DEFAULT_DATE = "2024-07-26"  # for a template that puts in today's date: any fixed day will do
FROM_DISK = {"local_files_only": True, "trust_remote_code": False}


def load_chat(folder: Path) -> Chat:
    """Return the tokenizer and the chat template of a Hugging Face folder.

    Raise UserError if the tokenizer is damaged, or the template is missing or cannot be used.
    """
    _check_model_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **FROM_DISK)
    except Exception as error:  # the tokenizers library raises bare Exceptions for a damaged file
        raise UserError(f"{folder}: cannot read the tokenizer ({one_line(error)}). {_fix(folder)}") from None
    settings = _read_json(folder / CHAT_FILE)
    try:
        return Chat(tokenizer, _end_tokens(folder), today=date.fromisoformat(settings.get("date", DEFAULT_DATE)))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def _end_tokens(folder: Path) -> list[int]:
    """Return the tokens that end an answer in `generate`: those of the generation config, else of the model's."""
    for name in ("generation_config.json", "config.json"):
        config = _read_json(folder / name)
        ends = config.get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
        if ends is not None:
            return [int(end) for end in (ends if isinstance(ends, list) else [ends])]
    return []


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file, or {} if there is no such file. Raise UserError if it is damaged."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{path}: damaged. {_fix(path.parent)}")
    return value


def load_config(folder: Path) -> PreTrainedConfig:
    """Return the configuration of a Hugging Face folder. Raise UserError if it is missing or damaged."""
    _check_model_folder(folder)
    try:
        return AutoConfig.from_pretrained(folder, **FROM_DISK)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot read config.json ({one_line(error)}). {_fix(folder)}") from None


def load_base(folder: Path, precision: str, device: torch.device) -> PreTrainedModel:
    """Return the causal language model of a Hugging Face folder in evaluation mode.

    `precision` is the name of the weights' torch dtype. Raise UserError if a file is missing or damaged, or lacks
    weights of the architecture, which transformers would fill with random numbers.
    """
    _check_model_folder(folder)
    options = {"dtype": getattr(torch, precision), "use_safetensors": True, "output_loading_info": True}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(folder, **options, **FROM_DISK)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{folder}: cannot read the model ({one_line(error)}). {_fix(folder)}") from None
    if missing := sorted(found["missing_keys"]):
        lack = f"the weights lack {missing[0]}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
        raise UserError(f"{folder}: {lack} of {type(model).__name__}. Take a complete model in params.yaml.")
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
