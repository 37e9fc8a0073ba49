"""Refuse a base model that cannot be fine-tuned, before anything large is downloaded, copied or trained."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from howto.core.errors import UserError, one_line
from howto.sources.model_files import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

OTHER = "Take another model in params.yaml."
CAUSAL = re.compile("CausalLM|LMHead|ConditionalGeneration|BertGenerationDecoder")
UNUSUAL_TEXT = "\u00e9\u6f22\u2603\U0001f600\ue000"
PLAIN_TYPES = frozenset({"F64", "F32", "F16", "BF16"})
WEIGHT = re.compile(r"(weight|packed|blocks)$")  # the last part of a tensor's name


def check_config(folder: Path, source: str) -> PreTrainedConfig:
    """Return the configuration of a model folder, which needs no other file. `source` names the folder in messages.

    Raise UserError if it is not that of a causal language model with plain weights, of an architecture that
    transformers has.
    """
    values = read_object(folder / "config.json", source)
    _check_not_quantised(values, source)

    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, logging

    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # for a value of another type, its checks raise errors of their own
        if "auto_map" in values:
            raise UserError(
                f"{source}: config.json names code in the repository (auto_map), and such code is never run. "
                "Take a model of an architecture that transformers has."
            ) from None
        raise UserError(f"{source}/config.json: transformers cannot read it ({one_line(error)}). {OTHER}") from None
    name = (values.get("architectures") or [""])[0]
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or (name and not CAUSAL.search(name)):
        kind = f"{name or type(config).__name__} (model_type {config.model_type})"
        raise UserError(f"{source}: expected a causal language model, got {kind}. {OTHER}")
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{source}: expected a causal language model, got an encoder-decoder ({name}). {OTHER}")
    return config


def check_base(folder: Path, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Check that weights and tokenizer of a complete model folder fit together.

    Raise UserError as `check_config`, or if weights are quantised, or the tokenizer has tokens without an embedding.
    """
    config = check_config(folder, source)
    tensors = _tensors(folder)
    if others := [name for name, (kind, _) in tensors.items() if WEIGHT.search(name) and kind not in PLAIN_TYPES]:
        raise _quantised(source, f"{others[0]} has type {tensors[others[0]][0]}")
    rows = _embedding_rows(config, tensors, source)
    if beyond := {number: token for number, token in _tokens(tokenizer).items() if number >= rows}:
        raise UserError(
            f"{source}: {len(beyond)} of its tokenizer's tokens have no embedding: {beyond[min(beyond)]!r} has id "
            f"{min(beyond)}, and the embeddings have {rows} rows. Take the tokenizer that the model was trained with, "
            "or another model."
        )


def _check_not_quantised(values: dict[str, Any], source: str) -> None:
    parts = [values, values.get("text_config")]
    for part in parts:
        for key in ("quantization_config", "compression_config"):
            if isinstance(part, dict) and (found := part.get(key)):
                method = found.get("quant_method", "bitsandbytes") if isinstance(found, dict) else found
                raise _quantised(source, f"{key} in config.json: {method}")


def _quantised(source: str, what: str) -> UserError:
    return UserError(
        f"{source}: quantised weights ({what}), which are not trained on. Take the model that they were made from, or "
        "a .gguf file, which is converted."
    )


def _tensors(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Return type and shape of each tensor in the folder's weights, by name."""
    from safetensors import safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                found[name] = part.get_dtype(), part.get_shape()
    return found


def _tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the tokens of a tokenizer by id.

    Its class in transformers adds some, such as a token for unknown words, also where no text needs them. Those are
    left out unless they are used.
    """
    added = {parameter.default for parameter in inspect.signature(type(tokenizer).__init__).parameters.values()}
    tokens = {number: token for token, number in tokenizer.get_vocab().items() if token not in added}
    used = {*tokenizer(UNUSUAL_TEXT, add_special_tokens=False, split_special_tokens=True).input_ids}
    used |= {tokenizer.eos_token_id} - {None}
    return tokens | {number: str(tokenizer.convert_ids_to_tokens(number)) for number in used}


def _embedding_rows(config: PreTrainedConfig, tensors: dict[str, tuple[str, list[int]]], source: str) -> int:
    """Return the number of rows of the input embeddings in the weights.

    A model of this configuration, without weights, knows their name; in a file it may lack or have a prefix. Raise
    UserError if the model has another number of rows.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    embeddings = model.get_input_embeddings().weight
    own = next(f".{name}" for name, weight in model.named_parameters() if weight is embeddings)
    for name, (_, shape) in tensors.items():
        if (own.endswith(f".{name}") or f".{name}".endswith(own)) and shape[0] != len(embeddings):
            what = f"config.json has vocab_size {len(embeddings)}, but the embeddings have {shape[0]} rows"
            raise UserError(f"{source}: {what}. {OTHER}")
    return len(embeddings)
