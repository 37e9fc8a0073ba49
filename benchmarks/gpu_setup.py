"""What the sections of `gpu_check` share: device, model, rows and sizes; a clock, a profiler, and a count of waits."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.prepare import cpu_name
from benchmarks.train import rows_of
from howto.inference.config import Infer
from howto.modeling.config import Machine, ProfileMachine
from howto.modeling.torch_setup import set_up_torch
from howto.params import read_params
from howto.training.config import ProfileTrain, Train

if TYPE_CHECKING:
    from peft import PeftModel

    from howto.core.schema import Row
    from howto.modeling.collate import Example
    from howto.training.forward import Engine

ROOT = Path(__file__).parent.parent
INSTRUCTION = "Write step-by-step instructions for what the user wants to do."
Figures = dict[str, Any]


class Check:
    """What the sections share: the device, the model's shape, real rows and sizes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.tiny = arguments, arguments.tiny
        params = read_params(ROOT / "params.yaml")
        self.shared, self.decoding = params.section(Train), params.section(Infer)
        precision: Literal["bfloat16", "float32"] = "bfloat16" if arguments.device == "cuda" else "float32"
        machine = params.section(Machine)
        self.device = set_up_torch(machine, ProfileMachine(device=arguments.device, precision=precision))

        import torch

        from howto.modeling.loading import load_chat

        self.dtype = getattr(torch, precision)
        self.chat = load_chat(arguments.folder)
        self.batch = 4 if self.tiny else 16
        self.steps = 2 if self.tiny else 40

    def model(self) -> Any:
        """The model with random weights, the same ones each time."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.arguments.folder)
        if self.tiny:
            config.num_hidden_layers, config.hidden_size, config.intermediate_size = 2, 64, 96
            config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 16
        torch.manual_seed(0)
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval()

    def adapted(self) -> PeftModel:
        """The model with a fresh adapter, the same one each time."""
        import torch

        from howto.training.lora import add_adapter

        model = self.model()
        torch.manual_seed(0)
        return add_adapter(model, self.shared.lora, self.arguments.folder)

    def profile(self, steps: int, batch: int = 0) -> ProfileTrain:
        """Params of so many steps."""
        return ProfileTrain(
            steps=steps,
            learning_rate=2e-4,
            batch_size=batch or self.batch,
            micro_batch_size=batch or self.batch,
            gradient_checkpointing=False,
            processes=1,
            fsdp=False,
        )

    def rows(self, count: int) -> list[Row]:
        """Real rows."""
        return rows_of(self.arguments.rows, count, INSTRUCTION)

    def encoded(self, rows: list[Row]) -> list[Example]:
        """Rows as tokens."""
        from howto.modeling.collate import encode

        return encode(self.chat, rows, self.shared.max_length, shorten=True)

    def examples(self, count: int) -> list[Example]:
        """Real rows as tokens."""
        return self.encoded(self.rows(count))

    def full_examples(self, count: int) -> list[Example]:
        """Rows of exactly the maximal length, half of it an answer, made of real rows' tokens."""
        from howto.modeling.collate import Example

        tokens = [token for row in self.examples(400) for token in [*row.prompt, *row.completion]]
        size, half = self.shared.max_length, self.shared.max_length // 2
        starts = [number * size % (len(tokens) - size) for number in range(count)]
        return [Example(str(s), tokens[s : s + half], tokens[s + half : s + size]) for s in starts]

    def engine(self, model: PeftModel, examples: list[Example], profile: ProfileTrain, *, compiled: bool) -> Engine:
        """The training engine."""
        from howto.training.forward import Engine

        pad = self.chat.end
        return Engine(model, examples, self.shared, profile, pad, compiled=compiled)

    def synchronize(self) -> None:
        """Wait for the device."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], Any], repeats: int = 20) -> float:
        """The median time of some work, after three runs to warm up."""
        import torch

        for _ in range(3):
            work()
        times: list[float] = []
        for _ in range(2 if self.tiny else repeats):
            self.synchronize()
            if self.device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                start.record()
                work()
                end.record()
                torch.cuda.synchronize()
                times.append(start.elapsed_time(end))
            else:
                begun = time.perf_counter()
                work()
                times.append((time.perf_counter() - begun) * 1000)
        return round(sorted(times)[len(times) // 2], 4)

    def peak_flops(self) -> float:
        """FLOP/s of a large matrix product."""
        import torch

        size = 256 if self.tiny else 8192
        one, other = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * size**3 / (self.milliseconds(lambda: one @ other) / 1000)

    def peak_memory(self) -> int:
        """The most MiB that tensors held since the last reset."""
        from howto.training.memory_check import peak_bytes

        return peak_bytes(self.device) // 2**20

    def reset_memory(self) -> None:
        """Begin to count anew."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()


def machine(check: Check) -> Figures:
    """A. Versions, card, the fastest product and the fastest copy."""
    import peft
    import torch
    import transformers

    found: Figures = {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "card": torch.cuda.get_device_name() if check.device.type == "cuda" else "none",
    }
    found["product_tflops"] = round(check.peak_flops() / 1e12, 2)
    one = torch.randn(2**18 if check.tiny else 2**29, device=check.device)
    other = torch.empty_like(one)
    taken = check.milliseconds(lambda: other.copy_(one))
    found["copy_gb_per_s"] = round(2 * one.nbytes / taken / 1e6, 1)
    return found


def profile_of(check: Check, work: Callable[[], Any], times: int, most: int = 25) -> Figures:
    """What a profiler sees of some work that consists of so many steps."""
    from torch.profiler import ProfilerActivity, profile

    check.synchronize()
    kinds = [ProfilerActivity.CUDA] if check.device.type == "cuda" else [ProfilerActivity.CPU]
    start = time.perf_counter()
    with profile(activities=kinds) as seen:
        work()
        check.synchronize()
    wall = (time.perf_counter() - start) * 1e6
    on_device = check.device.type == "cuda"
    totals: dict[str, list[float]] = {}
    for event in seen.key_averages():
        taken = event.self_device_time_total if on_device else event.self_cpu_time_total
        if taken:
            totals[event.key] = [taken, event.count]
    busy = sum(taken for taken, _ in totals.values())
    longest = sorted(totals.items(), key=lambda item: -item[1][0])[:most]
    return {
        "kernels_per_step": round(sum(count for _, count in totals.values()) / times),
        "busy_ms_per_step": round(busy / times / 1000, 3),
        "wall_ms_per_step": round(wall / times / 1000, 3),
        "longest": {
            name[:110]: [round(taken / times / 1000, 3), round(count / times)] for name, (taken, count) in longest
        },
    }


def kernels(work: Callable[[], Any]) -> list[str]:
    """The names of the kernels that some work runs on a GPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        return []
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        work()
        torch.cuda.synchronize()
    return [f"{event.key[:80]} {event.self_device_time_total:.0f} us" for event in seen.key_averages()]


@contextmanager
def waiting(check: Check) -> Iterator[Counter[str]]:
    """Count the synchronizations by place."""
    import torch

    found: Counter[str] = Counter()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if check.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if check.device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    for warning in seen:
        if "synchroniz" in str(warning.message):
            found[f"{Path(warning.filename).parent.name}/{Path(warning.filename).name}:{warning.lineno}"] += 1


def first_line(error: Exception) -> str:
    """Return the first line of an error, and where it was raised."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = lines[0][:300] if lines else ""
    return f"{type(error).__name__}: {message} ({Path(where.filename).name}:{where.lineno})"
