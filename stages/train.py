"""Fine-tune the base model with LoRA on the prepared rows.

reads:   data/prepared/train.jsonl, data/prepared/validation.jsonl, models/base/
params:  train, machine, profiles.<profile>.train, profiles.<profile>.machine
writes:  models/adapter/ (a PEFT folder), metrics/train.json, metrics/train_loss.csv, metrics/validation_loss.csv,
         and beside what must be the same every time metrics/train_speed.json

Killed on the way, it goes on from models/checkpoints/ when it is run again with the same inputs.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from howto.core.atomic import atomic_file, atomic_folder, write_json
from howto.core.config import Params
from howto.core.errors import UserError, reports_errors
from howto.core.output_lock import output_lock
from howto.core.paths import ADAPTER, BASE, CHECKPOINTS, METRICS, TRAIN, TRAINING, VALIDATION
from howto.core.schema import Row, read_rows
from howto.core.workers import usable_cores
from howto.modeling.config import Machine, ProfileMachine
from howto.modeling.distributed.launch import hosts, is_in_a_group, launch, on_this_host
from howto.params import read_params
from howto.training.config import ProfileTrain, Train

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from howto.modeling.collate import Encoded
    from howto.modeling.fingerprint import Fingerprint
    from howto.training.trainer import Curve

CODE = (
    "howto/__init__.py",
    "howto/core",
    "howto/modeling",
    "howto/training",
    "stages/__init__.py",
    "stages/train.py",
)
PROCESSES = "params.yaml: profiles.*.train.processes"


@reports_errors
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params()
    with output_lock(ADAPTER):
        train(params)


def train(params: Params) -> None:
    """Do the stage's work in the working directory, or have processes of their own do it.

    Raises:
        UserError: params and base do not go together, there is not enough memory, or an input is missing.
    """
    shared, profile, machine = params.section(Train), params.section(ProfileTrain), params.section(ProfileMachine)
    if (profile.processes > 1 or hosts() > 1) and not is_in_a_group():
        launch("stages.train", [], on_this_host(profile.processes, PROCESSES))
        return

    from howto.modeling.torch_setup import set_up_torch, versions

    device = set_up_torch(params.section(Machine), machine)
    if device.type == "cpu" and profile.processes == 1:
        say_what_more_threads_bring(params.section(Machine).threads)

    import torch

    from howto.modeling.distributed.process_group import joined
    from howto.modeling.fingerprint import Fingerprint
    from howto.modeling.loading import load_base, load_tokenizer
    from howto.training.checkpoints import Checkpoints
    from howto.training.forward import Engine
    from howto.training.fsdp import gathered_bytes, shard_base
    from howto.training.lora import CHANGES_THE_BASE, add_adapter, save_adapter
    from howto.training.memory_check import check_memory, says_out_of_memory
    from howto.training.trainer import Trainer

    with joined(profile.processes, device, PROCESSES) as group:
        device, is_first = group.device, group.rank == 0
        inputs = Fingerprint([TRAIN, VALIDATION, BASE], params, [Train, ProfileTrain, Machine, ProfileMachine], CODE)
        group.agree(inputs.parts(**versions(device)))
        if profile.fsdp and shared.lora.init in CHANGES_THE_BASE:
            raise UserError(f"params.yaml: profiles.*.train.fsdp does not go with train.lora.init: {shared.lora.init}")
        tokenizer = load_tokenizer(BASE)
        train_set, validation_set = read_examples(tokenizer, shared)
        key = inputs.key(but=f"{ProfileTrain.key}.processes", **versions(device))
        checkpoints = Checkpoints(CHECKPOINTS, key, writes=is_first, processes=group.size)
        torch.manual_seed(shared.seed)  # before the adapter is initialised
        model = add_adapter(
            load_base(BASE, machine.precision, torch.device("cpu") if profile.fsdp else device), shared.lora, BASE
        )
        initial = checkpoints.folder / "initial" if shared.lora.init in CHANGES_THE_BASE else None
        if initial and is_first:
            save_adapter(model, initial)
        beside = 0
        if profile.fsdp:
            shard_base(model, group)
            beside = gathered_bytes(model)
        with says_out_of_memory(profile):
            engine = Engine(model, train_set.examples, shared, profile, tokenizer.eos_token_id)
            check_memory(engine, train_set.examples, profile, packing=shared.packing, beside=beside, here=group.here)
            trainer = Trainer(engine, train_set.examples, validation_set.examples, shared, profile, group=group)
            start = time.monotonic()
            curve = trainer.run(checkpoints, write_curve if is_first else None)
            seconds = time.monotonic() - start
        if is_first:
            write_adapter(model, initial, inputs)
            write_json(TRAINING, summary(curve, train_set, validation_set, trainer.trainable))
            report(curve, train_set, seconds, device)
            checkpoints.remove()


def say_what_more_threads_bring(threads: int) -> None:
    """Print one line if more cores are free than `machine.threads` uses."""
    cores = usable_cores()
    if cores > threads:
        print(
            f"train: uses {threads} of {cores} cores. Set machine.threads: {cores} in params.yaml to train up to "
            f"{cores / threads:.3g} times as fast; the adapter's last digits then differ from the committed ones.",
            flush=True,
        )


def read_examples(tokenizer: PreTrainedTokenizerBase, shared: Train) -> tuple[Encoded, Encoded]:
    """The training and the validation rows as tokens.

    Raises:
        UserError: a file is missing or damaged, or no training row is short enough.
    """
    from howto.modeling.collate import encode

    rows = [read_rows(TRAIN, Row), read_rows(VALIDATION, Row, empty=True)]
    shorten = shared.too_long == "shorten"
    train_set, validation_set = (encode(tokenizer, part, shared.max_length, shorten=shorten) for part in rows)
    if not train_set.examples:
        raise UserError(
            f"{TRAIN}: no row fits into train.max_length = {shared.max_length} tokens; raise it in params.yaml"
        )
    return train_set, validation_set


def write_adapter(model: PeftModel, initial: Path | None, inputs: Fingerprint) -> None:
    """Save the adapter, if what it was trained with is still as it was.

    Raises:
        UserError: files, code or params have changed since the stage began.
    """
    from howto.modeling.loading import MADE_FOR, weights_sha256
    from howto.training.lora import save_adapter

    with atomic_folder(ADAPTER) as folder:
        save_adapter(model, folder, initial)
        write_json(folder / MADE_FOR, {"weights_sha256": weights_sha256(BASE)})
        inputs.check()


def report(curve: Curve, train_set: Encoded, seconds: float, device: torch.device) -> None:
    """Say how it went, and write what is not the same every time; of a run that was killed, for its last part."""
    from howto.training.memory_check import peak_bytes

    tokens = curve.tokens - curve.resumed_tokens
    speed = {
        "seconds": round(seconds, 1),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds),
        "peak_memory_mib": round(peak_bytes(device) / 2**20),
    }
    write_json(METRICS / "train_speed.json", speed)
    again = f"went on from step {curve.resumed_at}; " if curve.resumed_at else ""
    print(
        f"train: {len(curve.train)} steps on {len(train_set.examples)} rows ({len(train_set.shortened)} shortened, "
        f"{len(train_set.too_long)} too long and left out); validation loss {curve.kept_loss} -> {ADAPTER}\n"
        f"       {again}{curve.tokens:,} tokens, {curve.train[-1][1]:g} epochs, kept after {curve.kept_epoch:g}, "
        f"{speed['tokens_per_second']:,} tokens/s, peak memory {speed['peak_memory_mib']:,} MiB"
    )


def summary(curve: Curve, train_set: Encoded, validation_set: Encoded, trainable: int) -> dict[str, Any]:
    """What metrics/train.json says: the same every time."""
    return {
        "rows": {
            "used": len(train_set.examples),
            "shortened": len(train_set.shortened) + len(validation_set.shortened),
            "too_long": len(train_set.too_long) + len(validation_set.too_long),
        },
        "tokens": curve.tokens,
        "response_tokens": sum(len(example.completion) for example in train_set.examples),
        "trainable_parameters": trainable,
        "steps": len(curve.train),
        "kept_step": curve.kept_step,
        "kept_epoch": curve.kept_epoch,
        "train_loss": curve.train[-1][-1],
        "validation_loss": curve.kept_loss,
    }


def write_curve(curve: Curve) -> None:
    """Write the losses so far, so that `dvc plots show` can be looked at while training goes on."""
    _write_csv(METRICS / "train_loss.csv", ["step", "epoch", "learning_rate", "train_loss"], curve.train)
    _write_csv(METRICS / "validation_loss.csv", ["step", "epoch", "validation_loss"], curve.validation)


def _write_csv(
    path: Path, header: list[str], rows: list[tuple[int, float, float, float]] | list[tuple[int, float, float]]
) -> None:
    with atomic_file(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
