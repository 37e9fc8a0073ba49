"""What a run of the active profile costs in time, memory and disk, told before model and data are fetched.

python -m howto.estimate                                      this machine, params.yaml as it is
python -m howto.estimate --set profile=tinyllama --device H100
python -m howto.estimate --rank 64 --length 1024 --rows 100000
python -m howto.estimate --config llama-3.1-70b --rows 15011 --device H100 --gpus 8

Nothing is fetched, written or trained. A second is spent on measuring how fast this machine multiplies and moves.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from howto import costs
from howto.costs import Rows
from howto.estimate_table import show, size_of
from howto.known import METRICS, Known, Told, find_out, made_by, read_lock
from howto.launch import on_this_host
from howto.params.evaluate import Evaluate
from howto.params.file import Params
from howto.params.infer import Infer, ProfileInfer
from howto.params.machine import Machine, ProfileMachine
from howto.params.model import EmbeddedModel, Model
from howto.params.train import ProfileTrain, Train
from howto.shapes import BYTES, adapter_bytes, trainable
from howto.speed import ASSUMED_SHARE, Speed, measured_speed, published_speed
from howto.stop import stops_cleanly
from howto.what_if import changed_params

MIB = 2**20
# Of a process with torch and transformers, and of one without: seconds until it computes, bytes that it holds.
HEAVY_START, LIGHT_START = 4.0, 1.0
HEAVY, LIGHT = 450 * MIB, 150 * MIB
# Measured on 2 cores: benchmarks/results/prepare.json and evaluate.json.
PREPARED_A_SECOND, PREPARE_BYTES_A_ROW = 10_000, 800
EVALUATED_A_SECOND, EVALUATE_BYTES_A_ROW = 400, 34_000
PREDICTION, RESULT = 200, 4.5  # bytes of a prediction beside its text; results and report, in lengths of the raw rows
BYTES_PER_TOKEN = 4
BATCH, LENGTH = 4, 256  # of the embedded base model's own training
READING_TOKENS_PER_BYTE = 0.245
HUB = 30e6  # bytes a second from the hub, assumed
SCALING = 0.9  # of the work of several GPUs, assumed
CONTEXT = 600 * MIB  # that CUDA holds by itself, assumed


@dataclass(frozen=True)
class Cost:
    """What a stage costs: seconds, bytes of memory (and on the GPU), bytes on disk that stay, and those that go."""

    seconds: float
    memory: float
    on_gpu: float = 0.0
    disk: float = 0.0
    passing: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """A run told in advance."""

    known: Known
    speed: Speed
    gpus: int
    shards: int
    trainable: int
    stages: dict[str, Cost]
    too_large: list[tuple[str, str]]  # what does not fit on the GPUs, and what would
    notes: list[str]

    def total(self) -> Cost:
        """The whole run: times and disk are summed, of memory the most counts."""
        costs = self.stages.values()
        return Cost(
            sum(c.seconds for c in costs),
            max(c.memory for c in costs),
            max(c.on_gpu for c in costs),
            sum(c.disk for c in costs),
            max(c.passing for c in costs),
        )

    def disk(self) -> float:
        """Bytes on the project's disk: each output, its copy in DVC's cache, and what is there while a stage runs."""
        total = self.total()
        return 2 * total.disk + total.passing


def estimate(params: Params, told: Told, speed: Speed, *, gpus: int, is_gpu: bool, here: int | None = None) -> Estimate:
    """Every stage of a run, on a device of this speed. `here` are the processes that share this host's memory, if they
    are not all: one for each GPU, and those of train.processes on a CPU.

    Raises:
        Stop: the shape or the number of rows cannot be known yet.
    """
    known = find_out(params, told)
    shape, lora = known.shape, params.section(Train).lora
    itemsize = BYTES[params.section(ProfileMachine).precision]
    weights = shape.parameters() * itemsize
    processes = gpus if is_gpu else params.section(ProfileTrain).processes
    here = here or processes
    training = _training_memory(params, known, itemsize, gpus=gpus, margin=costs.MARGIN)
    wanted = bool(params.value(f"profiles.{params.profile}.train").get("fsdp"))
    shards = gpus if is_gpu and gpus > 1 and (wanted or training + CONTEXT > speed.memory) else 1
    stages = {
        "fetch_model": _fetch_model(params, known, speed),
        "fetch_data": Cost(
            LIGHT_START + (0 if _is_made(params, "data") else known.raw_bytes / HUB), LIGHT, 0, known.raw_bytes
        ),
        "prepare": Cost(
            LIGHT_START + known.raw_rows / PREPARED_A_SECOND,
            200 * MIB + known.raw_rows * PREPARE_BYTES_A_ROW,
            0,
            known.raw_bytes * 1.5,
            known.raw_bytes * 1.5,
        ),
        "train": _train(params, known, speed, itemsize, gpus=gpus, shards=shards, is_gpu=is_gpu, here=here),
    }
    for model in ("base", "adapter"):
        stages[f"infer@{model}"] = _infer(params, known, speed, itemsize, model, gpus=gpus, is_gpu=is_gpu, here=here)
    stages["evaluate"] = Cost(
        LIGHT_START + known.test.count / EVALUATED_A_SECOND * params.section(Evaluate).resamples / 10_000,
        LIGHT + known.test.count * EVALUATE_BYTES_A_ROW,
        0,
        known.test.count * known.raw_bytes / known.raw_rows * RESULT,
    )
    notes, too_large = _notes(params, known, speed, is_gpu=is_gpu), []
    if is_gpu:
        most = max(stage.on_gpu for name, stage in stages.items() if name.startswith("infer"))
        if most > speed.memory:
            fits = _slots_that_fit(params, known, speed)
            would = f"infer.batch_size: {fits} would" if fits else "not even one row would; docs/scaling.md has a way"
            too_large.append(
                (f"infer does not fit on one {speed.name} ({size_of(most)} of {size_of(speed.memory)})", would)
            )
        if shards > 1 and not wanted:
            notes.append(
                f"a whole copy wants {size_of(training + CONTEXT)} in training, more than one {speed.name} has: the "
                f"weights are taken as sharded over {shards} (FSDP), {size_of(weights / shards)} each"
            )
        wanted_of_each = _training_memory(params, known, itemsize, gpus=gpus, shards=shards, margin=costs.MARGIN)
        if CONTEXT + wanted_of_each > speed.memory:
            too_large.append((f"train does not fit on {gpus} x {speed.name}", _what_fits(params, known, speed, gpus)))
    notes += [f"{what}: {would}" for what, would in too_large]
    return Estimate(known, speed, gpus, shards, trainable(shape, lora), stages, too_large, notes)


def _is_made(params: Params, what: str) -> bool:
    return bool(params.value(f"profiles.{params.profile}.{what}.source") == "embedded")


def _fetch_model(params: Params, known: Known, speed: Speed) -> Cost:
    shape, model = known.shape, params.section(Model).root
    size = float(shape.file_bytes() + 64 * shape.vocabulary)  # the tokenizer's file, about so many bytes an entry
    if not isinstance(model, EmbeddedModel):
        local = Path(model.source).expanduser().exists()
        return Cost(HEAVY_START + size / (1e9 if local else HUB), HEAVY, 0, size)
    from howto.embedded.reading import make_reading

    reading = sum(map(len, make_reading(model.seed, 0))) * READING_TOKENS_PER_BYTE * model.passes
    work = costs.pretraining_work(shape, reading, length=LENGTH, batch=BATCH)
    memory = HEAVY + 20 * shape.parameters() + BATCH * LENGTH * 4 * (
        shape.layers * (12 * shape.hidden + 6 * shape.intermediate) + 4 * shape.vocabulary
    )  # fmt: skip
    return Cost(HEAVY_START + speed.seconds(work), memory, 0, size)


def _training_memory(
    params: Params,
    known: Known,
    itemsize: int,
    *,
    gpus: int = 1,
    shards: int = 1,
    size: int = 0,
    again: bool = False,
    margin: float = 1.0,
) -> float:
    """Of one process, for its largest micro-batch: all rows as long as the longest. `size` and `again` stand for
    micro_batch_size and gradient_checkpointing, where others than those of params.yaml are tried."""
    profile, lora = params.section(ProfileTrain), params.section(Train).lora
    rows = min(size or profile.micro_batch_size, -(-profile.batch_size // gpus), known.train.count)
    tokens = known.longest * rows
    return costs.training_memory(
        known.shape,
        lora,
        itemsize,
        tokens=tokens,
        response=tokens * known.train.response / known.train.tokens,
        again=again or profile.gradient_checkpointing,
        shards=shards,
        margin=margin,
    )


def _what_fits(params: Params, known: Known, speed: Speed, gpus: int) -> str:
    """Settings with which training would fit on these GPUs."""
    profile, itemsize = params.section(ProfileTrain), BYTES[params.section(ProfileMachine).precision]
    for again in (False, True):
        for size in range(profile.micro_batch_size, 0, -1):
            held = _training_memory(
                params, known, itemsize, gpus=gpus, shards=gpus, size=size, again=again, margin=costs.MARGIN
            )
            if profile.batch_size % size == 0 and held + CONTEXT <= speed.memory:
                more = " and gradient_checkpointing: true" if again and not profile.gradient_checkpointing else ""
                return f"micro_batch_size: {size}{more} would"
    return "not even one row at a time would; take more GPUs"


def _train(
    params: Params, known: Known, speed: Speed, itemsize: int, *, gpus: int, shards: int, is_gpu: bool, here: int
) -> Cost:
    shape, lora, profile = known.shape, params.section(Train).lora, params.section(ProfileTrain)
    per_epoch = -(-known.train.count // profile.batch_size)
    epochs = float(profile.epochs or 0) or (profile.steps or 0) / per_epoch
    work = costs.training_work(shape, lora, known.train, itemsize, again=profile.gradient_checkpointing) * epochs
    validation = known.validation
    work += costs.forward_work(shape, lora, validation, itemsize, logits=validation.response) * max(1.0, epochs)
    seconds = speed.seconds(work)
    if gpus > 1:
        seconds /= gpus * SCALING
    if shards > 1:  # each micro-batch gathers all weights forth and back, all but the part that is there
        micro = -(-profile.batch_size // (profile.micro_batch_size * gpus))
        seconds += epochs * per_epoch * micro * 2 * shape.parameters() * itemsize * (1 - 1 / shards) / speed.link
    if not is_gpu and (measured := _measured_before(params)):
        seconds = measured
    held = _training_memory(params, known, itemsize, gpus=gpus if is_gpu else profile.processes, shards=shards)
    adapter = float(adapter_bytes(shape, lora) + 2000)
    return Cost(
        HEAVY_START + seconds,
        here * (HEAVY + (_read_whole(known, itemsize) if is_gpu else held)),
        CONTEXT + held if is_gpu else 0,
        adapter + 40 * per_epoch * epochs,
        costs.checkpoint_bytes(shape, lora),
    )


def _read_whole(known: Known, itemsize: int) -> float:
    """Bytes of the base model, which a process reads into the host's memory before its GPU gets it, or a part of it."""
    return float(known.shape.parameters() * itemsize)


def _measured_before(params: Params) -> float | None:
    """Seconds that the same training took on this machine, if it was not resumed."""
    if not made_by(read_lock(), "train", params):
        return None
    try:
        speed = json.loads((METRICS / "train_speed.json").read_text(encoding="utf-8"))
        run = json.loads((METRICS / "train.json").read_text(encoding="utf-8"))
        return float(speed["seconds"] * run["tokens"] / speed["tokens"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        return None


def _infer(
    params: Params, known: Known, speed: Speed, itemsize: int, model: str, *, gpus: int, is_gpu: bool, here: int
) -> Cost:
    """Of one process for each GPU, with its part of the rows; of one on a CPU."""
    shape, lora, profile = known.shape, params.section(Train).lora, params.section(ProfileInfer)
    decoding = profile.decoding(params.section(Infer))
    asked = Rows(known.test.count * len(decoding.seeds), known.test.tokens, known.test.response)
    part, rows = replace(asked, count=-(-asked.count // gpus)), replace(known.test, count=-(-known.test.count // gpus))
    slots, new = min(profile.batch_size, part.count), known.new[model]
    held = _answering_memory(params, known, itemsize, slots)
    longest = min(float(decoding.max_new_tokens), 2.5 * new)
    work = costs.answering_work(shape, lora, part, new, itemsize, slots=slots, longest=longest)
    references = costs.forward_work(shape, lora, rows, itemsize, logits=rows.response)
    return Cost(
        HEAVY_START + speed.seconds(work, few=True) + speed.seconds(references),
        here * (HEAVY + _read_whole(known, itemsize)) if is_gpu else HEAVY + held,
        CONTEXT + held if is_gpu else 0,
        asked.count * (PREDICTION + new * BYTES_PER_TOKEN),
    )


def _answering_memory(params: Params, known: Known, itemsize: int, slots: int) -> float:
    """With so many rows in flight, all as long as may be."""
    decoding = params.section(ProfileInfer).decoding(params.section(Infer))
    longest = min(known.longest, float(decoding.max_prompt_tokens or known.longest)) + decoding.max_new_tokens
    return costs.answering_memory(known.shape, params.section(Train).lora, itemsize, slots=slots, longest=longest)


def _slots_that_fit(params: Params, known: Known, speed: Speed) -> int:
    """Rows in flight that fit on one GPU, a power of two; 0 if not even one does."""
    itemsize = BYTES[params.section(ProfileMachine).precision]
    sizes = (2**power for power in range(14, -1, -1))
    return next((n for n in sizes if CONTEXT + _answering_memory(params, known, itemsize, n) <= speed.memory), 0)


def _load() -> float:
    """Programs that want a core, of the last minute on average."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _notes(params: Params, known: Known, speed: Speed, *, is_gpu: bool) -> list[str]:
    """What was taken for granted, and how to know better."""
    how = known.how
    notes = [f"model: {how['model']}", f"rows: {how['rows']}" + (f"; {how['bytes']}" if "bytes" in how else "")]
    if how["tokens"]:
        notes.append(f"tokens: {how['tokens']} (--tokens-per-row N knows better)")
    notes.append(f"answers: {how['answers']}")
    if speed.measured:
        notes.append(
            f"speed: measured just now on {speed.name}: {speed.flops / 1e9:,.0f} GFLOP/s, "
            f"{speed.bandwidth / 1e9:.1f} GB/s; programs that run beside it slow both (load {_load():.1f} now)"
        )
    if is_gpu:
        what = (
            "the share of it that is reached"
            if speed.measured
            else f"{ASSUMED_SHARE:.0%} of the published peak assumed"
        )
        notes.append(f"GPU figures: NOT MEASURED; {what}; no run of this project has been timed on a GPU")
    if not is_gpu and _measured_before(params):
        notes.append(f"train: as long as it took before, says {METRICS}/train_speed.json")
    processes = params.section(ProfileTrain).processes
    if not is_gpu and processes > 1:
        notes.append(
            f"train: the time of one process, and the memory of all on this host; {processes} take less time where "
            "each has machine.threads cores of its own"
        )
    if not _is_made(params, "model") or not _is_made(params, "data"):
        notes.append(
            f"downloads: {HUB / 1e6:.0f} MB/s assumed; what comes from the hub lies in its cache too (HF_HOME)"
        )
    return notes


@stops_cleanly
def main() -> None:
    """Tell what the run costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="this", help="this (default), or a GPU that howto/published.yaml knows")
    parser.add_argument("--gpus", type=_count, default=None, help="so many of them (default: train.processes)")
    parser.add_argument("--config", metavar="FILE", help="a config.json, or the name of a published shape")
    parser.add_argument("--rows", type=_count, help="raw rows")
    parser.add_argument("--tokens-per-row", type=_above_zero, metavar="T")
    parser.add_argument("--rank", type=_count, help="as --set train.lora.r=")
    parser.add_argument("--length", type=_count, help="as --set train.max_length=")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a value of params.yaml")
    arguments = parser.parse_args()
    settings = list(arguments.set)
    settings += [f"train.lora.r={arguments.rank}"] if arguments.rank else []
    settings += [f"train.max_length={arguments.length}"] if arguments.length else []
    settings.sort(key=lambda setting: not setting.startswith("profile="))
    params = changed_params(settings)
    told = Told(arguments.config, arguments.rows, arguments.tokens_per_row)
    machine = params.section(ProfileMachine)
    if arguments.device != "this":
        is_gpu, speed = True, published_speed(arguments.device, machine.precision)
    else:
        shape = find_out(params, told).shape
        profile = params.section(ProfileTrain)
        speed = measured_speed(
            params.section(Machine),
            machine,
            shape,
            tokens=profile.micro_batch_size * 128,
            slots=params.section(ProfileInfer).batch_size,
        )
        is_gpu = speed.memory > 0
    if arguments.gpus and not is_gpu:
        parser.error("--gpus: there is none here that the profile would use; name one with --device")
    processes = arguments.gpus or params.section(ProfileTrain).processes
    here = on_this_host(processes, "--gpus" if arguments.gpus else "train.processes")
    made = estimate(params, told, speed, gpus=processes if is_gpu else 1, is_gpu=is_gpu, here=here)
    show(made, params, is_gpu=is_gpu)


def _above_zero(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text} is no number above 0")


def _count(text: str) -> int:
    with suppress(ValueError):
        if (value := int(text)) > 0:
            return value
    raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")


if __name__ == "__main__":
    main()
