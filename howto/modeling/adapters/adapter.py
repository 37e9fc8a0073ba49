"""Load a PEFT adapter onto its base, and merge it: every kind that PEFT can turn into a change of weights."""

from __future__ import annotations

import json
import re
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open

from howto.core.errors import UserError, is_out_of_memory, one_line
from howto.modeling.adapters.fused_lora import HIDDEN_STATE_TOLERANCE, relative_error
from howto.modeling.loading import BASE_HASH_FILE, weights_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
OTHER_KIND = "Train another kind, such as plain LoRA."
PROBE_TOKENS = 16
MIXES = "mixes several adapters by the prompt"
# What an adapter does that no change of weights can do, by its kind or by a key of its configuration.
UNMERGEABLE_KINDS = {"ADAPTION_PROMPT": "adds learnt tokens to attention", "POLY": MIXES, "XLORA": MIXES}
UNMERGEABLE_KEYS = {
    "alora_invocation_tokens": "is active for a part of the prompt only",
    "layer_replication": "repeats layers of the base",
}
# What PEFT raises for a damaged adapter, or one that was made for another model.
PEFT_ERRORS = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, re.error, SafetensorError)


def load_adapter(model: PreTrainedModel, folder: Path, base: Path) -> PeftModel:
    """Put the adapter in `folder` on `model`, which was loaded from `base`.

    Many models share one matrix between input embeddings and output head. If the adapter changes one of them, the head
    gets a copy of its own, so that merging does not change both. Raise UserError if the adapter is missing or damaged,
    was made for another base, changes nothing, or does what merged weights cannot do.
    """
    config = _read_config(folder)
    _check_kind(config, folder)
    _check_base(config, model, folder, base)
    probe = _probe(model, config)
    before = _logits(model, probe)
    problem = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            adapted = PeftModel.from_pretrained(model, str(folder))
            unused = adapted.load_adapter(str(folder), "default").unexpected_keys  # PEFT does not mention these
        except PEFT_ERRORS as error:
            if is_out_of_memory(error):
                raise
            problem = one_line(error)
    if not problem and unused:
        problem = f"{len(unused)} of its weights have no place there, such as {unused[0]}"
    if not problem and any("missing adapter keys" in str(one.message) for one in caught):
        problem = "it has no weights for some layers"
    if problem:
        raise UserError(f"{folder}: does not fit {base}{_made_for(config)}, or is damaged ({problem}). {_fix(folder)}")
    adapted.eval()
    lora_b = [weight for name, weight in adapted.named_parameters() if "lora_B" in name]
    if not any(bool(weight.any()) for weight in lora_b) and torch.equal(_logits(adapted, probe), before):
        raise UserError(f"{folder}: the adapter changes nothing. {_fix(folder)}")
    if _tells_head_from_embeddings(model):
        untie_head(model)
    return adapted


def merge_adapter(adapted: PeftModel, folder: Path) -> PreTrainedModel:
    """Return the base in float32 with the adapter that `load_adapter` read from `folder` merged into its weights.

    If head and input embeddings then differ, the model's config says that they are not tied. Raise UserError if PEFT
    cannot merge the adapter, or if the merged model's logits are not those of the adapter.
    """
    config, model = adapted.peft_config["default"], adapted.get_base_model()
    what, probe = f"{folder}: this {_kind(config)} adapter cannot be merged", _probe(model, config)
    try:
        expected = _logits(adapted, probe)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that head and embeddings were tied
            merged: PreTrainedModel = adapted.merge_and_unload()
    except (NotImplementedError, ValueError, RuntimeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{what} ({one_line(error)}). {OTHER_KIND}") from None
    if not relative_error(_logits(merged, probe), expected) <= HIDDEN_STATE_TOLERANCE[torch.float32]:  # also if NaN
        raise UserError(f"{what} (the merged weights give other logits). {OTHER_KIND}")
    return merged


def untie_head(model: PreTrainedModel) -> None:
    """Give the output head a copy of the matrix that it shares with the input embeddings, if it does."""
    embeddings, head = _without_adapter(model.get_input_embeddings()), _without_adapter(model.get_output_embeddings())
    if head is not None and head.weight is embeddings.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), head.weight.requires_grad)


def _tells_head_from_embeddings(model: PreTrainedModel) -> bool:
    """Return whether the adapter on `model` changes the output head or the embeddings, and not both as one."""
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    single_tokens = getattr(ends[1], "token_adapter", ends[1])
    if getattr(single_tokens, "tied_adapter", None):
        return False
    return any(isinstance(end, BaseTunerLayer | AuxiliaryTrainingWrapper) for end in ends)


def _without_adapter(module: Any) -> Any:
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _read_config(folder: Path) -> PeftConfig:
    for path in (folder / CONFIG, folder / WEIGHTS):
        if path.is_file():
            continue
        if path.name == WEIGHTS and (folder / PICKLED).is_file():
            raise UserError(
                f"{folder}: expected {WEIGHTS}, got {PICKLED}. Pickled weights can run code, so they are not loaded. "
                "Load the adapter with PEFT and save it again, as safetensors."
            )
        raise UserError(f"{path}: no such file. {_fix(folder)}")
    path = folder / CONFIG
    try:
        values: dict[str, Any] = json.loads(path.read_bytes())
        kind = str(values["peft_type"])
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path}: not the configuration of a PEFT adapter. {_fix(folder)}") from None
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UserError(f"{path}: PEFT {version('peft')} does not know the kind {kind}. Install a later PEFT.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about keys that it does not know, see below
            config = PeftConfig.from_pretrained(str(folder))
    except PEFT_ERRORS as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}). {_fix(folder)}") from None
    if unknown := [key for key in values if values[key] and key not in config.to_dict()]:
        print(
            f"note: {path}: PEFT {version('peft')} does not know {', '.join(unknown)}, and ignores it", file=sys.stderr
        )
    return config


def _check_kind(config: PeftConfig, folder: Path) -> None:
    reason = UNMERGEABLE_KINDS.get(_kind(config))
    if config.is_prompt_learning:
        reason = "adds learnt tokens to the prompt"
    reason = reason or next((reason for key, reason in UNMERGEABLE_KEYS.items() if getattr(config, key, None)), None)
    if reason:
        what = f"expected an adapter that only changes the base's weights, got one ({_kind(config)}) that {reason}"
        raise UserError(f"{folder}: {what}. {OTHER_KIND}")
    if config.task_type not in {None, "CAUSAL_LM"}:
        raise UserError(f"{folder}: expected an adapter for CAUSAL_LM, got one for {config.task_type}. {_fix(folder)}")


def _check_base(config: PeftConfig, model: PreTrainedModel, folder: Path, base: Path) -> None:
    """Raise UserError if the adapter was trained on other weights, or for a resized vocabulary."""
    if (path := folder / BASE_HASH_FILE).is_file():
        try:
            trained_on = str(json.loads(path.read_text(encoding="utf-8"))["weights_sha256"])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: damaged. {_fix(folder)}") from None
        if trained_on != weights_sha256(base):
            other = f"another base model (weights sha256 {trained_on[:12]}...) than {base}"
            raise UserError(f"{folder}: this adapter was trained on {other}. {_fix(folder)}")
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    rows = {name: len(module.weight) for name, module in model.named_modules() if module in {embeddings, head}}
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as weights:
            saved = {
                name: weights.get_slice(key).get_shape()[0]
                for name in rows
                for key in weights.keys()  # noqa: SIM118  # not a dict
                if key in {f"base_model.model.{name}.weight", f"base_model.model.{name}.base_layer.weight"}
            }
    except SafetensorError as error:
        raise UserError(f"{folder / WEIGHTS}: damaged ({one_line(error)}). {_fix(folder)}") from None
    if resized := [name for name in saved if saved[name] != rows[name]]:
        name = resized[0]
        raise UserError(
            f"{folder}: expected {name} of {rows[name]} tokens, as in {base}, got {saved[name]}, for another "
            f"tokenizer{_made_for(config)}. Merge the adapter with PEFT, and use the result as model.source."
        )


def _probe(model: PreTrainedModel, config: PeftConfig) -> torch.Tensor:
    """Return tokens [1, tokens] from all over the vocabulary, and those that the adapter trains one by one."""
    rows, device = len(model.get_input_embeddings().weight), next(model.parameters()).device
    chosen = getattr(config, "token_indices", None) or getattr(config, "trainable_token_indices", None) or []
    lists = chosen.values() if isinstance(chosen, dict) else [chosen]
    tokens = [*range(0, rows, -(-rows // PROBE_TOKENS)), *(token for one in lists for token in one[:PROBE_TOKENS])]
    return torch.tensor([[token for token in tokens if 0 <= token < rows]], device=device)


@torch.inference_mode()
def _logits(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits.clone()


def _kind(config: PeftConfig) -> str:
    return str(getattr(config.peft_type, "value", config.peft_type))


def _made_for(config: PeftConfig) -> str:
    name = config.base_model_name_or_path
    return f" (it was made for {name})" if name else ""


def _fix(folder: Path) -> str:
    own = folder.name == "adapter"
    return "Make it again with `dvc repro -f train`." if own else "Give the folder of a PEFT adapter for this base."
