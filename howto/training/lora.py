"""The LoRA adapter (PEFT): put on a base model, and saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer

from howto.core.atomic import write_json
from howto.core.errors import UserError
from howto.training.config import Lora, ProfileTrain, Train

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

# These write into the base's weights what they put into the adapter.
CHANGES_THE_BASE = ("olora", "pissa")


def add_adapter(model: PreTrainedModel, lora: Lora, base: Path) -> PeftModel:
    """Put a fresh adapter on the base model in the folder `base`; the base's own weights are frozen.

    The adapter's weights are float32, whatever those of the base are.

    Raises:
        UserError: a key of `train.lora` names no layer of this base, or a rank that a layer cannot have.
    """
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    _check_names(linear, lora, int(model.config.num_hidden_layers))
    targets = lora.target_modules
    if lora.layers is not None and targets == "all-linear":  # PEFT takes no layers together with a word
        head = model.get_output_embeddings()
        targets = sorted({name.split(".")[-1] for name in linear if model.get_submodule(name) is not head})
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        exclude_modules=lora.exclude_modules,
        layers_to_transform=lora.layers,
        rank_pattern=lora.rank_pattern,
        alpha_pattern=lora.alpha_pattern,
        init_lora_weights=True if lora.init == "default" else lora.init,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:  # PEFT's own words, for what is not foreseen here
        raise UserError(f"params.yaml: train.lora: {' '.join(str(error).split())[:300]}") from None
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    return adapted


def _check_names(linear: set[str], lora: Lora, layers: int) -> None:
    """Stop where a key names nothing. PEFT stops when all of its targets match nothing, and not for a single one."""
    kinds = sorted({name.split(".")[-1] for name in linear})

    def matches(wanted: str) -> bool:
        return any(name == wanted or name.endswith(f".{wanted}") for name in linear)

    named = {
        "target_modules": [] if lora.target_modules == "all-linear" else list(lora.target_modules),
        "exclude_modules": lora.exclude_modules or [],
        "rank_pattern": list(lora.rank_pattern),
        "alpha_pattern": list(lora.alpha_pattern),
    }
    for key, wanted in named.items():
        if missing := [name for name in wanted if not matches(name)]:
            raise UserError(
                f"params.yaml: train.lora.{key}: {', '.join(missing)} is in no layer of the base model; "
                f"its linear layers are {', '.join(kinds)}"
            )
    if lora.layers is not None and (wrong := [n for n in lora.layers if not 0 <= n < layers]):
        raise UserError(f"params.yaml: train.lora.layers: {wrong}: the base model has layers 0 to {layers - 1}")


def make_optimizer(model: PeftModel, shared: Train, profile: ProfileTrain) -> torch.optim.Optimizer:
    """AdamW on the adapter; with `plus_ratio` as LoRA+ (Hayou et al. 2024, arXiv:2402.12354) groups it."""
    settings: dict[str, Any] = {"fused": True}
    if shared.lora.plus_ratio is None:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        return torch.optim.AdamW(weights, lr=profile.learning_rate, weight_decay=shared.weight_decay, **settings)
    optimizer = create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=profile.learning_rate,
        loraplus_lr_ratio=shared.lora.plus_ratio,
        loraplus_weight_decay=shared.weight_decay,
        **settings,
    )
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
    return optimizer  # type: ignore[no-any-return]


def trained_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The weights that training changes, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_adapter(model: PeftModel, folder: Path, initial: Path | None = None) -> None:
    """Save the adapter as a PEFT folder, the same bytes for the same adapter.

    `initial` holds the adapter as it was before training, for one whose init changed the base: what is
    saved then is the difference, an adapter of twice the rank that fits the base as it was.
    """
    conversion = {"path_initial_model_for_weight_conversion": str(initial)} if initial else {}
    # LoRA leaves the embeddings as they are; saved with it, they would be looked up on the hub.
    model.save_pretrained(folder, save_embedding_layers=False, **conversion)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key, value in config.items():  # PEFT writes sets, in an order of the moment
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            config[key] = sorted(value)
    write_json(path, config)
