"""Fine-tune the base model with LoRA on the prepared rows.

reads:   data/prepared/train.jsonl, data/prepared/validation.jsonl, models/base/
params:  train, machine, profiles.<profile>.train, profiles.<profile>.machine
writes:  models/adapter/ (a PEFT folder), metrics/train.json, metrics/train_loss.csv, metrics/validation_loss.csv,
         metrics/validation_rougeL.csv, and metrics/train_speed.json, which differs from run to run

A killed run resumes from models/checkpoints/ when it is run again with the same inputs.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from howto.core.atomic import atomic_folder, write_csv, write_json
from howto.core.config import Params
from howto.core.errors import UserError, reports_errors
from howto.core.output_lock import output_lock
from howto.core.paths import ADAPTER, BASE, CHECKPOINTS, METRICS, TRAIN, TRAINING, VALIDATION
from howto.core.schema import Row, number_rows, read_rows
from howto.core.workers import usable_cores
from howto.modeling.config import Machine, ProfileMachine
from howto.modeling.distributed.launch import host_count, in_process_group, launch, processes_per_host
from howto.params import read_params
from howto.training.config import INITS_THAT_CHANGE_THE_BASE, ProfileTrain, Train, train_settings

if TYPE_CHECKING:
    from howto.modeling.chat import Chat
    from howto.modeling.collate import Example
    from howto.modeling.distributed.process_group import ProcessGroup
    from howto.training.trainer import Curve, Trainer

CODE = (
    "howto/__init__.py",
    "howto/core",
    "howto/evaluation/config.py",
    "howto/evaluation/rouge.py",
    "howto/evaluation/tokenizers.py",
    "howto/inference",
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
    shared, profile = train_settings(params)
    processes, init = profile.processes, shared.lora.init
    if profile.fsdp and init in INITS_THAT_CHANGE_THE_BASE:
        raise UserError(f"params.yaml: profiles.*.train.fsdp does not support train.lora.init: {init}. Change one.")
    with output_lock(ADAPTER):
        if (processes > 1 or host_count() > 1) and not in_process_group():
            launch("stages.train", [], processes_per_host(processes, PROCESSES))
            return
        from howto.modeling.torch_setup import set_up_torch

        machine = params.section(Machine)
        device = set_up_torch(machine, params.section(ProfileMachine))
        if device.type == "cpu" and processes == 1 and (cores := usable_cores()) > machine.threads:
            print(
                f"train: uses {machine.threads} of {cores} cores. Set machine.threads: {cores} in params.yaml to train "
                f"up to {cores / machine.threads:.3g} times as fast; the adapter's last digits then differ from the "
                "committed ones.",
                flush=True,
            )
        from howto.modeling.distributed.process_group import join_process_group

        with join_process_group(processes, device, PROCESSES) as group:
            train(params, group)


def train(params: Params, group: ProcessGroup) -> None:
    """Train in the working directory, as one of the processes of a group; the first one writes the outputs.

    Raise UserError if params and base do not fit together, an input is missing, or there is not enough memory.
    """
    import torch

    from howto.modeling.fingerprint import Fingerprint
    from howto.modeling.loading import BASE_HASH_FILE, load_base, load_chat, weights_sha256
    from howto.modeling.torch_setup import versions
    from howto.training.answers import ValidationAnswers
    from howto.training.checkpoints import Checkpoints
    from howto.training.forward import Engine
    from howto.training.fsdp import shard_base
    from howto.training.lora import add_adapter, save_adapter
    from howto.training.memory_check import check_memory, peak_bytes
    from howto.training.trainer import Trainer

    shared, profile = train_settings(params)
    fingerprint = Fingerprint([TRAIN, VALIDATION, BASE], params, [Train, ProfileTrain, Machine, ProfileMachine], CODE)
    group.check_same(fingerprint.parts(**versions(group.device)))
    chat = load_chat(BASE)
    check_lengths(params, shared, chat)
    train_set, validation_set, validation_rows, left_out = read_examples(chat, shared)

    torch.manual_seed(shared.seed)  # before the adapter is initialised
    precision = params.section(ProfileMachine).precision
    base = load_base(BASE, precision, torch.device("cpu") if profile.fsdp else group.device)
    model = add_adapter(base, shared.lora, BASE)
    checkpoints = initial = None
    if group.rank == 0:
        key = fingerprint.key(ignoring=f"{ProfileTrain.key}.processes", **versions(group.device))
        checkpoints = Checkpoints(CHECKPOINTS, key, processes=group.size)
        if shared.lora.init in INITS_THAT_CHANGE_THE_BASE:
            initial = checkpoints.folder / "initial"
            save_adapter(model, initial)
    if profile.fsdp:
        shard_base(model, group)

    engine = Engine(model, train_set, shared, profile, chat.end)
    check_memory(engine, train_set, profile, group.processes_on_host)
    answers = None
    if count := shared.validation_answers:
        answers = ValidationAnswers(engine, chat, validation_rows, validation_set, count=count, fsdp=profile.fsdp)
    trainer = Trainer(engine, train_set, validation_set, shared, profile, group=group, answers=answers)
    start = time.monotonic()
    curve = trainer.run(checkpoints, write_curve if checkpoints else None)
    seconds = time.monotonic() - start

    if checkpoints:
        with atomic_folder(ADAPTER) as folder:
            save_adapter(model, folder, initial)
            write_json(folder / BASE_HASH_FILE, {"weights_sha256": weights_sha256(BASE)})
            fingerprint.check()
        response_tokens = sum(len(example.completion) for example in train_set)
        rows = {
            "used": len(train_set),
            "shortened": sum(example.is_shortened for example in [*train_set, *validation_set]),
            "too_long": left_out,
        }
        write_json(TRAINING, summary(curve, rows, response_tokens, trainer.trainable))
        report(trainer, rows, seconds, peak_bytes(group.device))
        checkpoints.remove()


def check_lengths(params: Params, shared: Train, chat: Chat) -> None:
    """Check that the base has room for the rows of training, and for a prompt and its answer in `infer`.

    Raise UserError if it has not. The params of `infer` are read for nothing else.
    """
    from howto.modeling.collate import encode_row
    from howto.modeling.context_window import context_window, longest_prompt
    from howto.modeling.loading import load_config

    window = context_window(load_config(BASE))
    if shared.max_length > window:
        raise UserError(
            f"params.yaml: train.max_length: expected at most {window:,}, the context window of {BASE}, got "
            f"{shared.max_length:,}. Lower it."
        )
    shared_infer, own = params.value("infer"), params.value(f"profiles.{params.profile}.infer")
    answer, prompt = (own.get(key) or shared_infer[key] for key in ("max_new_tokens", "max_prompt_tokens"))
    room = longest_prompt(window, answer, prompt, BASE)
    if not any(encode_row(chat, row, max_prompt=room).prompt for _, row in number_rows(TRAIN, Row)):
        raise UserError(
            f"params.yaml: infer: no prompt in {TRAIN} fits into {room:,} tokens. Lower infer.max_new_tokens "
            f"({answer:,}), or raise infer.max_prompt_tokens."
        )


def read_examples(chat: Chat, shared: Train) -> tuple[list[Example], list[Example], list[Row], int]:
    """Return the training and the validation rows as tokens, the latter as texts too, and how many were too long.

    Raise UserError if a file is missing or damaged, or no training row is short enough.
    """
    from howto.modeling.collate import encode

    rows = [read_rows(TRAIN, Row), read_rows(VALIDATION, Row, empty=True)]
    shorten = shared.too_long == "shorten"
    train_set, validation_set = (encode(chat, part, shared.max_length, shorten=shorten) for part in rows)
    if not train_set:
        raise UserError(f"{TRAIN}: no row fits into train.max_length: {shared.max_length}. Raise it in params.yaml.")
    return train_set, validation_set, rows[1], sum(map(len, rows)) - len(train_set) - len(validation_set)


def write_curve(curve: Curve) -> None:
    """Write the curves so far, so that `dvc plots show` works during training."""
    write_csv(METRICS / "train_loss.csv", [("step", "epoch", "learning_rate", "train_loss"), *curve.train])
    validation = [row[:3] for row in curve.validation]
    write_csv(METRICS / "validation_loss.csv", [("step", "epoch", "validation_loss"), *validation])
    scored = [(step, epoch, rouge_l) for step, epoch, _, rouge_l in curve.validation if rouge_l is not None]
    write_csv(METRICS / "validation_rougeL.csv", [("step", "epoch", "validation_rougeL"), *scored])


def summary(curve: Curve, rows: dict[str, int], response_tokens: int, trainable: int) -> dict[str, Any]:
    """Return the contents of metrics/train.json, which are the same in every run."""
    return {
        "rows": rows,
        "tokens": curve.tokens,
        "response_tokens": response_tokens,
        "trainable_parameters": trainable,
        "steps": len(curve.train),
        "kept_step": curve.kept_step,
        "kept_epoch": curve.kept_epoch,
        "train_loss": curve.train[-1][-1],
        "validation_loss": curve.kept_loss,
        **({} if curve.kept_rouge_l is None else {"validation_rougeL": curve.kept_rouge_l}),
    }


def report(trainer: Trainer, rows: dict[str, int], seconds: float, peak_bytes: int) -> None:
    """Print how it went, and write speed and peak memory, of a resumed run since it resumed."""
    curve = trainer.curve
    tokens, peak = curve.tokens - curve.resumed_tokens, round(peak_bytes / 2**20)
    speed = {"seconds": round(seconds, 1), "tokens": tokens, "tokens_per_second": round(tokens / seconds)}
    answers = {"answer_seconds": round(trainer.answer_seconds, 1)} if trainer.answer_seconds else {}
    write_json(METRICS / "train_speed.json", {**speed, **answers, "peak_memory_mib": peak})
    rouge_l = "" if curve.kept_rouge_l is None else f", ROUGE-L {curve.kept_rouge_l}"
    of_answers = f" ({trainer.answer_seconds / seconds:.0%} of the time for validation answers)" if answers else ""
    resumed = f"resumed from step {curve.resumed_at}; " if curve.resumed_at else ""
    print(
        f"train: {len(curve.train)} steps on {rows['used']} rows ({rows['shortened']} shortened, {rows['too_long']} "
        f"too long and left out); validation loss {curve.kept_loss}{rouge_l} -> {ADAPTER}\n"
        f"       {resumed}{curve.tokens:,} tokens, {curve.train[-1][1]:g} epochs, kept after {curve.kept_epoch:g}, "
        f"{speed['tokens_per_second']:,} tokens/s{of_answers}, peak memory {peak:,} MiB"
    )


if __name__ == "__main__":
    main()
