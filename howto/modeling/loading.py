"""Load the base model and its adapter from folders on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from howto.core.errors import UserError, is_out_of_memory, one_line
from howto.core.hashing import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

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


def load_adapter(model: PreTrainedModel, folder: Path, base: Path) -> PeftModel:
    """Put the adapter in `folder` on `model`, which was loaded from `base`.

    Raise UserError if the adapter is missing or damaged, was trained on another base, or changes nothing.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file. Make the adapter with `dvc repro train`.")
    again = "with `dvc repro -f train`"
    if (path := folder / BASE_HASH_FILE).is_file():
        try:
            trained_on = str(json.loads(path.read_text(encoding="utf-8"))["weights_sha256"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: damaged. Make the adapter again {again}.") from None
        if trained_on != weights_sha256(base):
            other = f"another base model (weights sha256 {trained_on[:12]}...) than {base}"
            raise UserError(f"{folder}: this adapter was trained on {other}. Train one for this base {again}.")
    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        reason = f"does not fit {base} or is damaged ({one_line(error)})"
        raise UserError(f"{folder}: the adapter {reason}. Make it again {again}.") from None
    lora_b = [weight for name, weight in adapted.named_parameters() if "lora_B" in name]
    if not lora_b:
        raise UserError(f"{folder}: expected a LoRA adapter, got another kind. Train one {again}.")
    if not any(bool(weight.any()) for weight in lora_b):
        raise UserError(f"{folder}: the adapter changes nothing (every B matrix is 0). Train it {again}.")
    return adapted.eval()


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
