"""Loading the base model and its adapter from folders on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from howto.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MADE_FOR = "base_model.json"  # beside an adapter: the weights that it was trained on


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face folder.

    Raises:
        UserError: it is missing or damaged, or has no chat template.
    """
    _is_model_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions for a damaged file
        raise UserError(f"{folder}: its tokenizer cannot be read ({_first_line(error)}); {_again(folder)}") from None
    if not tokenizer.chat_template:
        raise UserError(f"{folder}: the tokenizer has no chat template; take a chat model as the base")
    return tokenizer


def load_base(folder: Path, precision: str, device: torch.device) -> PreTrainedModel:
    """The base model of a Hugging Face folder, in evaluation mode.

    `precision` is the name of a torch dtype, and that of the weights in memory.

    Raises:
        UserError: a file is missing or damaged, or holds no causal language model.
    """
    _is_model_folder(folder)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, precision),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: the model cannot be read ({_first_line(error)}); {_again(folder)}") from None
    return model.to(device).eval()


def load_adapter(model: PreTrainedModel, folder: Path, base: Path) -> PeftModel:
    """Put the adapter in `folder` on `model`, which was loaded from `base`.

    Raises:
        UserError: the adapter is missing or damaged, was made for another base, or changes nothing.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: not there; make the adapter with `dvc repro train`")
    if (folder / MADE_FOR).is_file():
        made_for = _made_for(folder / MADE_FOR)
        if made_for != weights_sha256(base):
            raise UserError(
                f"{folder}: this adapter was trained on another base model (weights sha256 {made_for[:12]}...) than "
                f"{base}; train one for this base with `dvc repro train`"
            )
    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the adapter does not fit {base} or is damaged ({_first_line(error)}); "
            "make it again with `dvc repro -f train`"
        ) from None
    lora_b = [weight for name, weight in adapted.named_parameters() if "lora_B" in name]
    if not lora_b:
        raise UserError(f"{folder}: not a LoRA adapter; this project puts no other kind on a base")
    if not any(bool(weight.any()) for weight in lora_b):
        raise UserError(
            f"{folder}: the adapter changes nothing (every B matrix is 0); train it with `dvc repro -f train`"
        )
    return adapted.eval()


def weights_sha256(folder: Path) -> str:
    """One hash over the safetensors files of a model folder, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _made_for(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["weights_sha256"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; make the adapter again with `dvc repro -f train`") from None


def _is_model_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {_again(folder)}")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder / 'config.json'}: not there; {_again(folder)}")


def _again(folder: Path) -> str:
    return "make it again with `dvc repro -f fetch_model`" if folder.name == "base" else "name a Hugging Face folder"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160].rstrip(".") if lines else type(error).__name__
