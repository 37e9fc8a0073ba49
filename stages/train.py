"""Fine-tune the base model with LoRA on the prepared rows.

reads:   data/prepared/train.jsonl, data/prepared/validation.jsonl, models/base/
params:  train, machine, profiles.<profile>.train, profiles.<profile>.machine
writes:  models/adapter/ (a PEFT folder), metrics/train.json, metrics/train_loss.csv, metrics/validation_loss.csv
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from howto.params.file import read_params
from howto.params.machine import Machine, ProfileMachine
from howto.params.train import ProfileTrain, Train
from howto.rows import Row, read_rows
from howto.stop import Stop, stops_cleanly
from howto.whole import whole_file, whole_folder

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from howto.batches import Example

PREPARED = Path("data/prepared")
BASE = Path("models/base")
ADAPTER = Path("models/adapter")
METRICS = Path("metrics")


@stops_cleanly
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params()
    shared, profile = params.section(Train), params.section(ProfileTrain)
    machine = params.section(ProfileMachine)
    train_rows = read_rows(PREPARED / "train.jsonl", Row)
    validation_rows = read_rows(PREPARED / "validation.jsonl", Row, empty=True)

    from howto.torch_setup import set_up_torch

    device = set_up_torch(params.section(Machine), machine)

    import torch

    from howto.base import MADE_FOR, load_base, load_tokenizer, weights_sha256
    from howto.batches import encode

    tokenizer = load_tokenizer(BASE)
    train_set, train_too_long = encode(tokenizer, train_rows, shared.max_length)
    validation_set, validation_too_long = encode(tokenizer, validation_rows, shared.max_length)
    if not train_set:
        raise Stop(
            f"{PREPARED / 'train.jsonl'}: no row is at most train.max_length = {shared.max_length} tokens long; "
            "raise it in params.yaml"
        )
    torch.manual_seed(shared.seed)  # before the adapter is initialised
    model = add_adapter(load_base(BASE, machine.precision, device), shared)
    curve = fit(model, train_set, validation_set, shared, profile, device=device, pad=tokenizer.eos_token_id)

    with whole_folder(ADAPTER) as folder:
        save_adapter(model, folder)
        _write_json(folder / MADE_FOR, {"weights_sha256": weights_sha256(BASE)})
    _write_csv(METRICS / "train_loss.csv", ["step", "epoch", "learning_rate", "train_loss"], curve.train)
    _write_csv(METRICS / "validation_loss.csv", ["step", "epoch", "validation_loss"], curve.validation)
    summary = {
        "rows": {"used": len(train_set), "too_long": len(train_too_long) + len(validation_too_long)},
        "response_tokens": sum(len(example.completion) for example in train_set),
        "trainable_parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "steps": len(curve.train),
        "kept_epoch": curve.kept_epoch,
        "train_loss": curve.train[-1][-1],
        "validation_loss": curve.kept_loss,
    }
    _write_json(METRICS / "train.json", summary)
    print(
        f"train: {summary['steps']} steps on {len(train_set)} rows "
        f"({summary['rows']['too_long']} too long, left out); "
        f"validation loss {curve.kept_loss} after epoch {curve.kept_epoch} -> {ADAPTER}"
    )


@dataclass
class Curve:
    """Losses in nats a response token: one row for each step, and one for each look at the validation rows."""

    train: list[tuple[int, float, float, float]] = field(default_factory=list)
    validation: list[tuple[int, int, float]] = field(default_factory=list)
    kept_epoch: int = 0
    kept_loss: float | None = None


def add_adapter(model: PreTrainedModel, params: Train) -> PeftModel:
    """Put a fresh LoRA adapter on the base model, whose own weights are frozen.

    Raises:
        Stop: `train.lora.target_modules` names no linear layer of the base.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    lora = params.lora
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        linear = sorted({name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        if "target_modules" not in str(error).lower() and "target modules" not in str(error).lower():
            raise
        raise Stop(
            f"params.yaml: train.lora.target_modules: none of {lora.target_modules} is in the base model; "
            f"its linear layers are {', '.join(linear)}"
        ) from None
    adapted.peft_config["default"].base_model_name_or_path = str(BASE)
    return adapted


def fit(
    model: PeftModel,
    train_set: list[Example],
    validation_set: list[Example],
    shared: Train,
    profile: ProfileTrain,
    *,
    device: torch.device,
    pad: int,
    max_steps: int | None = None,
) -> Curve:
    """Train the adapter in place; leave it as it was after the epoch that `keep` says.

    One optimizer step takes `batch_size` rows; its loss is the mean over all their response tokens.

    Raises:
        Stop: the loss is not a finite number; the message names step and rows.
    """
    import torch
    from tqdm import tqdm

    from howto.batches import micro_batches, steps_of_epoch
    from howto.loss import response_loss

    base = model.get_base_model()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=profile.learning_rate, weight_decay=shared.weight_decay)
    steps = math.ceil(len(train_set) / profile.batch_size) * profile.epochs
    steps = min(steps, max_steps) if max_steps else steps
    curve = Curve()
    kept: dict[str, torch.Tensor] = {}

    with tqdm(total=steps, desc="train", unit="step", disable=None) as progress:
        for epoch in range(1, profile.epochs + 1):
            model.train()
            for rows in steps_of_epoch(train_set, profile.batch_size, shared.seed, epoch):
                rate = profile.learning_rate * learning_rate_factor(shared, len(curve.train), steps)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                tokens = sum(len(row.completion) for row in rows)
                total = 0.0
                for batch in micro_batches(rows, profile.micro_batch_size, pad):
                    loss = response_loss(base, batch, device) / tokens
                    torch.autograd.backward(loss)
                    total += loss.item()
                if not math.isfinite(total):
                    raise Stop(
                        f"train: the loss is {total} in step {len(curve.train) + 1} (rows "
                        f"{', '.join(row.id for row in rows)}); lower the learning rate in params.yaml"
                    )
                torch.nn.utils.clip_grad_norm_(weights, shared.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                part = (
                    epoch - 1 + min(1.0, (len(curve.train) % (steps / profile.epochs) + 1) / (steps / profile.epochs))
                )
                curve.train.append((len(curve.train) + 1, round(part, 4), round(rate, 9), round(total, 6)))
                progress.update()
                progress.set_postfix(loss=f"{total:.3f}", epoch=epoch)
                if len(curve.train) == steps:
                    break
            if validation_set:
                loss_now = round(mean_loss(model, validation_set, profile.micro_batch_size, device, pad), 6)
                curve.validation.append((len(curve.train), epoch, loss_now))
            else:
                loss_now = None
            if shared.keep == "last" or loss_now is None or curve.kept_loss is None or loss_now < curve.kept_loss:
                curve.kept_epoch, curve.kept_loss = epoch, loss_now
                kept = {name: w.detach().clone() for name, w in model.named_parameters() if w.requires_grad}
            if len(curve.train) == steps:
                break
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(kept[name])
    return curve


def learning_rate_factor(params: Train, step: int, steps: int) -> float:
    """The schedule's factor of the peak at `step` (from 0) of `steps`: linear warm-up, then as `schedule` says."""
    warmup = round(params.warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    if params.schedule == "cosine":
        return 0.5 + 0.5 * math.cos(math.pi * done)
    return 1 - done if params.schedule == "linear" else 1.0


def mean_loss(model: PeftModel, examples: list[Example], size: int, device: torch.device, pad: int) -> float:
    """Mean loss in nats a response token over all examples, without dropout."""
    import torch

    from howto.batches import micro_batches
    from howto.loss import response_loss

    model.eval()
    with torch.inference_mode():
        losses = [response_loss(model.get_base_model(), b, device).item() for b in micro_batches(examples, size, pad)]
    return sum(losses) / sum(len(example.completion) for example in examples)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Save the adapter as a PEFT folder, the same bytes for the same adapter."""
    model.save_pretrained(folder, save_embedding_layers=False)  # LoRA leaves the embeddings as they are
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in an order of the moment
    _write_json(path, config)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    with whole_file(path) as file:
        json.dump(values, file, indent=2)
        file.write("\n")


def _write_csv(
    path: Path, header: list[str], rows: list[tuple[int, float, float, float]] | list[tuple[int, int, float]]
) -> None:
    with whole_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
