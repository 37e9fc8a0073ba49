"""Put a LoRA adapter (PEFT) on a base model, and save it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers.pytorch_utils import Conv1D

from howto.core.atomic import write_json
from howto.core.errors import UserError, one_line
from howto.modeling.adapters.adapter import untie_head
from howto.training.config import Lora, ProfileTrain, Train

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def add_adapter(model: PreTrainedModel, lora: Lora, base: Path) -> PeftModel:
    """Put a fresh adapter on the base model in the folder `base`, and freeze the base's own weights.

    The adapter's weights are float32, whatever those of the base are. If the output head gets an adapter, it gets its
    own copy of the matrix that it shares with the input embeddings in many models. Raise UserError if a key of
    `train.lora` names a layer that this base does not have, or a rank that a layer cannot have.
    """
    # Conv1D is GPT-2's linear layer, with its matrix transposed.
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    _check_names(set(linear), lora, int(model.config.get_text_config(decoder=True).num_hidden_layers))
    if lora.init == "olora" and any(isinstance(module, Conv1D) for module in linear.values()):
        raise UserError(f"params.yaml: train.lora.init: olora does not support {type(model).__name__}. Choose another.")
    targets, head = lora.target_modules, model.get_output_embeddings()
    kinds = sorted({name.split(".")[-1] for name, module in linear.items() if module is not head})
    if targets == "all-linear":
        if lora.layers is not None:  # PEFT does not support both
            targets = kinds
    elif any(module is head and _matches(name, targets) for name, module in linear.items()):
        untie_head(model)
        model.config.tie_word_embeddings = False
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=lora.exclude_modules,
        layers_to_transform=lora.layers,
        rank_pattern=dict(lora.rank_pattern),  # PEFT adds those of experts
        alpha_pattern=dict(lora.alpha_pattern),
        init_lora_weights=True if lora.init == "default" else lora.init,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fan_in_fan_out")  # PEFT sets it itself for each layer
            adapted = get_peft_model(model, config)
    except ValueError as error:  # what PEFT checks itself
        refusal = _refusal(type(model).__name__, kinds, str(error)) or f": {one_line(error)}"
        raise UserError(f"params.yaml: train.lora{refusal}") from None
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    return adapted


def _refusal(model: str, kinds: list[str], error: str) -> str:
    """Return key, reason and remedy for what PEFT does not adapt in some architectures; "" for other errors.

    `kinds` are the names of the linear layers.
    """
    if "Mamba" in error:
        return f".exclude_modules: PEFT does not adapt out_proj of {model}. Add out_proj to the list."
    if "ParamWrapper" not in error:
        return ""
    key, off = ("dropout", "0.0") if "dropout" in error else ("dora", "false")
    return (
        f".{key}: PEFT has none for the experts of {model}. Set it to {off}, or set train.lora.target_modules to the "
        f"layers outside the experts: [{', '.join(kinds)}]."
    )


def _check_names(linear: set[str], lora: Lora, layers: int) -> None:
    """Check that each name in params is one of a layer. PEFT stops only if no target at all matches."""
    names = {
        "target_modules": [] if lora.target_modules == "all-linear" else lora.target_modules,
        "exclude_modules": lora.exclude_modules or [],
        "rank_pattern": list(lora.rank_pattern),
        "alpha_pattern": list(lora.alpha_pattern),
    }
    kinds = ", ".join(sorted({name.split(".")[-1] for name in linear}))
    for key, expected in names.items():
        if missing := [name for name in expected if not any(_matches(layer, [name]) for layer in linear)]:
            raise UserError(
                f"params.yaml: train.lora.{key}: expected linear layers ({kinds}), got {', '.join(missing)}"
            )
    if lora.layers is not None and (wrong := [number for number in lora.layers if not 0 <= number < layers]):
        raise UserError(f"params.yaml: train.lora.layers: expected numbers from 0 to {layers - 1}, got {wrong}")


def _matches(layer: str, names: list[str]) -> bool:
    """Return whether one of `names` is the layer's name, or the end of it."""
    return any(f".{layer}".endswith(f".{name}") for name in names)


def make_optimizer(model: PeftModel, shared: Train, profile: ProfileTrain) -> torch.optim.Optimizer:
    """Return AdamW on the adapter; with `plus_ratio` grouped as in LoRA+ (Hayou et al. 2024, arXiv:2402.12354)."""
    rate, decay = profile.learning_rate, shared.weight_decay
    if shared.lora.plus_ratio is None:
        return torch.optim.AdamW(list(trained_weights(model).values()), lr=rate, weight_decay=decay, fused=True)
    plus = {"loraplus_lr_ratio": shared.lora.plus_ratio, "loraplus_weight_decay": decay}
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=rate, **plus, fused=True)
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
    return optimizer  # type: ignore[no-any-return]


def trained_weights(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """Return the weights that training changes, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_adapter(model: PeftModel, folder: Path, initial: Path | None = None) -> None:
    """Save the adapter as a PEFT folder, the same bytes for the same adapter.

    `initial` is the folder of the adapter before training, if its init changed the base. Then the difference is saved:
    an adapter of twice the rank that fits the original base.
    """
    # LoRA does not change the embeddings; to save them, PEFT would look the model up on the hub.
    before = str(initial) if initial else None
    model.save_pretrained(folder, save_embedding_layers=False, path_initial_model_for_weight_conversion=before)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in config.items():  # PEFT writes sets in a random order
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            config[key] = sorted(value)
    write_json(path, config)
