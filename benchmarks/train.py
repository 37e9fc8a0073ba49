"""Compare this project's training engine with TRL's SFTTrainer and transformers' Trainer.

python -m benchmarks.train [--model models/base] [--data data/howto] [--rows 48] [--turns 1] [--warm-up 1]
    [--engines NAME ...] [--output FILE]

All engines see the same rows, tokens, model and initial adapter. `--model` is a Hugging Face folder. If it has no
weights (../shared/data/tinyllama), they are random: time and memory are real, the text is noise. `--data` is a JSONL
file in Dolly's columns, or a folder of such files, from which rows are taken in turn. Every engine runs in a process of
its own, one after the other, for one epoch: batches of 8, all-linear LoRA, r 8, dropout 0.05, AdamW, cosine. Speed
counts real tokens, no padding, from the end of the last warm-up step to the end of the last step; setting up, and the
first `--warm-up` steps of the epoch, are not timed. `share_of_4n_limit` compares it with 4 FLOPs a token and parameter
of the layers, at the fastest matrix product of all runs. Peak memory is that of the process (on a GPU: the most that
torch held). `loss_after` is the mean loss of all rows after training, measured in the same way for all: by the model's
own forward pass, row by row. The peers use all instructions that the CPU has, this project those that params.yaml
allows. They need `pip install -r requirements-test.lock`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.prepare import cpu_name
from howto.core.atomic import write_json
from howto.core.schema import Row, input_of
from howto.modeling.config import Machine, ProfileMachine
from howto.params import read_params
from howto.training.config import ProfileTrain, Train

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from howto.modeling.collate import Example

RESULTS = Path(__file__).parent / "results"
ENGINES = {
    "howto": "this project",
    "howto_checkpointing": "this project, gradient_checkpointing: true",
    "howto_native": "this project, instruction_set: native (CPU only)",
    "howto_bfloat16": "this project, precision: bfloat16 and instruction_set: native (CPU only)",
    "trl_default": "TRL's SFTTrainer as it comes (gradient checkpointing on)",
    "trl_no_checkpointing": "TRL, no checkpointing",
    "trl_grouped": "TRL, no checkpointing, rows grouped by length",
    "trl_packed": "TRL, no checkpointing, packing (rows see each other without FlashAttention)",
    "trl_liger": "TRL, no checkpointing, rows grouped by length, Liger's kernels (GPU only)",
    "transformers": "transformers' Trainer as it comes",
}
ON_GPU_ONLY, ON_CPU_ONLY = {"trl_liger"}, {"howto_native", "howto_bfloat16"}
LEARNING_RATE = 5e-4
WARM_UP = {"cpu": 1, "cuda": 3}  # steps: the first ones allocate memory, compile, and capture graphs


@dataclass(frozen=True)
class Run:
    """The loss of each step, in nats a response token; seconds and real tokens of the steps that were timed."""

    losses: list[float]
    seconds: float
    tokens: int


class Clock:
    """Times the optimizer steps within a `with` block, whatever trains, from the end of the first `warm_up` steps on.

    Raises:
        ValueError: no step was left to time.
    """

    def __init__(self, warm_up: int, device: torch.device) -> None:
        self.seconds = 0.0
        self._warm_up, self._device, self._steps = warm_up, device, 0

    def __enter__(self) -> Clock:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._hook = register_optimizer_step_post_hook(self._on_step)
        self._start = self._now()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._hook.remove()
        self.seconds = self._now() - self._start
        if kind is None and self._steps <= self._warm_up:
            raise ValueError(f"expected more than {self._warm_up} steps, got {self._steps}. Lower --warm-up.")

    def _on_step(self, *_: object) -> None:
        self._steps += 1
        if self._steps == self._warm_up:
            self._start = self._now()

    def _now(self) -> float:
        import torch

        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    """Run every engine in a process of its own, and print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/base"))
    parser.add_argument("--data", type=Path, default=Path("data/howto"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=None)
    parser.add_argument("--turns", type=int, default=1, help="the fastest of so many runs counts (%(default)s)")
    parser.add_argument("--warm-up", type=int, help="steps before the clock starts (1 on a CPU, 3 on a GPU)")
    parser.add_argument("--not-deterministic", action="store_true")
    parser.add_argument("--output", type=Path, help="where the table is kept, if not in benchmarks/results")
    parser.add_argument("--one", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.warm_up is None:
        arguments.warm_up = WARM_UP[arguments.device]
    if not 0 <= arguments.warm_up < (steps := -(-arguments.rows // arguments.batch_size)):
        parser.error(f"--warm-up: expected 0 to {steps - 1} of the epoch's {steps} steps, got {arguments.warm_up}")
    if arguments.one:
        print(json.dumps(run_one(arguments)))
        return
    measured: dict[str, dict[str, Any]] = {}
    peaks: dict[str, float] = {}  # FLOP/s of the fastest matrix product in any run, by precision
    elsewhere = ON_CPU_ONLY if arguments.device == "cuda" else ON_GPU_ONLY
    engines = arguments.engines or [name for name in ENGINES if name not in elsewhere]
    for name in engines * arguments.turns:
        command = [sys.executable, "-m", "benchmarks.train", *sys.argv[1:], "--one", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{name}: failed", file=sys.stderr)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        print(name, found, file=sys.stderr, flush=True)
        peaks[found["precision"]] = max(peaks.get(found["precision"], 0.0), found.pop("peak"))
        if name not in measured or found["seconds"] < measured[name]["seconds"]:
            measured[name] = found
    ours = measured.get("howto", {}).get("tokens_per_second", 0)
    for figures in measured.values():
        figures["share_of_4n_limit"] = round(figures.pop("flops") / peaks[figures["precision"]], 3)
        figures["howto_is_times_as_fast"] = round(ours / figures["tokens_per_second"], 2)
    result = {
        "command": f"python -m benchmarks.train {' '.join(sys.argv[1:])}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "warm_up_steps": arguments.warm_up,
        "what": {name: ENGINES[name] for name in measured},
        "measured": measured,
    }
    print(json.dumps(result, indent=2))
    name = "smollm2" if arguments.model == Path("models/base") else arguments.model.name
    write_json(arguments.output or RESULTS / f"train_{name}_{arguments.device}.json", result)


def run_one(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train with one engine."""
    from howto.modeling.torch_setup import set_up_torch

    params = read_params(Path(__file__).parent.parent / "params.yaml")
    low = arguments.device == "cuda" or arguments.one == "howto_bfloat16"
    precision: Literal["float32", "bfloat16"] = "bfloat16" if low else "float32"
    machine = params.section(Machine).model_copy(update={"deterministic": not arguments.not_deterministic})
    if arguments.one in ON_CPU_ONLY or not arguments.one.startswith("howto"):  # peers may use all that the CPU has
        machine = machine.model_copy(update={"instruction_set": "native"})
    device = set_up_torch(machine, ProfileMachine(device=arguments.device, precision=precision))

    import torch

    from howto.modeling.collate import encode
    from howto.modeling.loading import load_chat
    from howto.training.memory_check import peak_bytes
    from howto.training.trainer import Trainer, epoch_order

    shared = params.section(Train)
    profile = ProfileTrain(
        epochs=1,
        learning_rate=LEARNING_RATE,
        batch_size=arguments.batch_size,
        micro_batch_size=arguments.batch_size,
        gradient_checkpointing=arguments.one == "howto_checkpointing",
        processes=1,
        fsdp=False,
    )
    shared = shared.model_copy(update={"warmup_ratio": 0.0})
    rows = rows_of(arguments.data, arguments.rows, read_instruction())
    chat = load_chat(arguments.model)
    examples = encode(chat, rows, shared.max_length, shorten=True)
    model = adapted_model(arguments, shared, device, getattr(torch, precision))
    parameters = sum(
        w.numel() for n, w in model.named_parameters() if w.ndim == 2 and "lora" not in n and "embed" not in n
    )
    order = epoch_order(examples, shared.seed, 1)
    peak = peak_flops(device, getattr(torch, precision))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if arguments.one.startswith("howto"):
        from howto.training.forward import Engine

        engine = Engine(model, examples, shared, profile, chat.end)
        trainer = Trainer(engine, examples, [], shared, profile)
        with Clock(arguments.warm_up, device) as clock:
            losses = [loss for *_, loss in trainer.run().train]
        run = Run(losses, clock.seconds, sum(map(len, order[arguments.warm_up * profile.batch_size :])))
    else:
        run = run_peer(arguments.one, model, order, shared, profile, arguments.model, warm_up=arguments.warm_up)
    memory = peak_bytes(device)
    speed = run.tokens / run.seconds
    return {
        "tokens_per_second": round(speed, 1),
        "seconds": round(run.seconds, 2),
        "tokens": run.tokens,
        "steps": len(run.losses) - arguments.warm_up,
        "peak_memory_mib": round(memory / 2**20),
        "flops": 4 * parameters * speed,
        "peak": peak,
        "precision": precision,
        "first_loss": round(run.losses[0], 4),
        "loss_after": round(loss_after(model, examples), 4),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": str(torch.__version__),
    }


def read_instruction() -> str:
    """The instruction of params.yaml."""
    from howto.data.config import prepare_settings

    return prepare_settings(read_params(Path(__file__).parent.parent / "params.yaml")).instruction


def rows_of(path: Path, count: int, instruction: str) -> list[Row]:
    """Return rows in Dolly's columns from a file, or from the files of a folder in turn."""
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl"))
    turns = zip(*(file.read_text(encoding="utf-8").splitlines() for file in files), strict=False)
    rows: list[Row] = []
    for raw in map(json.loads, islice((line for turn in turns for line in turn), count)):
        text, context = raw["instruction"], raw.get("context") or ""
        rows.append(
            Row(
                id=str(len(rows)),
                category="",
                instruction=instruction,
                input=input_of(text, context),
                context=context,
                output=raw["response"] or "",
            )
        )
    return rows


def adapted_model(arguments: argparse.Namespace, shared: Train, device: torch.device, dtype: torch.dtype) -> PeftModel:
    """Return the model with a fresh adapter, the same for every engine."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from howto.modeling.loading import load_base
    from howto.training.lora import add_adapter

    if list(arguments.model.glob("*.safetensors")):
        model = load_base(arguments.model, str(dtype).removeprefix("torch."), device)
    else:
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(arguments.model), dtype=dtype)
    torch.manual_seed(0)
    return add_adapter(model, shared.lora, arguments.model)


def run_peer(  # noqa: PLR0917
    name: str,
    model: PeftModel,
    rows: list[Example],
    shared: Train,
    profile: ProfileTrain,
    tokenizer_folder: Path,
    warm_up: int = 0,
) -> Run:
    """Run a peer over the rows once, in their order where the setting allows one; the first `warm_up` steps untimed."""
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments
    from trl import SFTConfig, SFTTrainer

    device = next(model.parameters()).device
    records = [
        {
            "input_ids": [*row.prompt, *row.completion],
            "completion_mask": [0] * len(row.prompt) + [1] * len(row.completion),
            "labels": [-100] * len(row.prompt) + row.completion,
        }
        for row in rows
    ]
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    sampling = "group_by_length" if name in {"trl_grouped", "trl_liger"} else "sequential"
    with tempfile.TemporaryDirectory() as folder:
        common: dict[str, Any] = {
            "output_dir": folder,
            "per_device_train_batch_size": profile.batch_size,
            "num_train_epochs": 1,
            "learning_rate": profile.learning_rate,
            "lr_scheduler_type": "cosine",
            "weight_decay": shared.weight_decay,
            "max_grad_norm": shared.max_grad_norm,
            "seed": shared.seed,
            "use_cpu": device.type == "cpu",
            "bf16": device.type == "cuda",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "dataloader_num_workers": 0,
            "train_sampling_strategy": sampling,
            "dataloader_pin_memory": device.type == "cuda",
        }
        model.train()
        trainer: Any
        if name == "transformers":
            data = Dataset.from_list([{key: record[key] for key in ("input_ids", "labels")} for record in records])
            collate = DataCollatorForSeq2Seq(tokenizer)
            trainer = Trainer(model=model, args=TrainingArguments(**common), train_dataset=data, data_collator=collate)
        else:
            settings: dict[str, Any] = {"max_length": shared.max_length, "completion_only_loss": True}
            if name != "trl_default":
                settings["gradient_checkpointing"] = False
            if name == "trl_packed":
                settings["packing"] = True
            if name == "trl_liger":
                settings["use_liger_kernel"] = True
            data = Dataset.from_list([{k: record[k] for k in ("input_ids", "completion_mask")} for record in records])
            trainer = SFTTrainer(
                model=model, args=SFTConfig(**common, **settings), train_dataset=data, processing_class=tokenizer
            )
        tokens_of_steps = count_tokens(trainer)
        with Clock(warm_up, device) as clock:
            trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Run(losses, clock.seconds, sum(tokens_of_steps[warm_up : len(losses)]))


def count_tokens(trainer: Any) -> list[int]:
    """Let a peer's trainer note the real tokens of each batch: in what order it takes rows is its own choice."""
    found: list[int] = []
    collate = trainer.data_collator

    def noted(rows: list[dict[str, Any]]) -> Any:
        found.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    trainer.data_collator = noted
    return found


def loss_after(model: PeftModel, examples: list[Example]) -> float:
    """Mean loss, in nats a response token, by the model's own forward pass."""
    import torch

    from howto.modeling.collate import collate
    from howto.training.loss import response_loss

    base = model.get_base_model()
    base.set_attn_implementation("sdpa")
    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        losses = [response_loss(base, collate([row], 2, device), fused=False).item() for row in examples]
    return sum(losses) / sum(len(row.completion) for row in examples)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: what the device can do at best."""
    import torch

    size = 8192 if device.type == "cuda" else 1536
    one = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(4):
            _ = one @ one
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 4 * 2 * size**3 / best


if __name__ == "__main__":
    main()
