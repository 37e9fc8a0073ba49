"""Check this project on a GPU in under eight minutes: is it right, how fast is it, and where does the time go?

python -m benchmarks.gpu_check FOLDER --rows FILE [--sections ABC...] [--output FILE] [--device cpu --tiny]

FOLDER holds a model's config.json and tokenizer; the weights are random, so times are real and texts are noise. FILE is
a JSONL file with Dolly's columns. Each section runs in a process of its own with a time limit, and prints one line of
JSON; one that fails prints its error, and the others go on. benchmarks/README.md says how it is run on a bare machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.prepare import cpu_name
from benchmarks.train import rows_of, run_peer
from howto.params.file import read_params
from howto.params.infer import Infer
from howto.params.machine import Machine, ProfileMachine
from howto.params.train import ProfileTrain, Train
from howto.torch_setup import set_up_torch
from howto.whole import write_json

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from howto.batches import Example
    from howto.engine import Engine

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

        from howto.base import load_tokenizer

        self.dtype = getattr(torch, precision)
        self.tokenizer = load_tokenizer(arguments.folder)
        self.batch = 4 if self.tiny else 16
        self.steps, self.warm_up = (2, 1) if self.tiny else (40, 10)
        self.layers = 2 if self.tiny else None

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

        from howto.adapter import add_adapter

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

    def examples(self, count: int) -> list[Example]:
        """Real rows as tokens."""
        from howto.batches import encode

        rows = rows_of(self.arguments.rows, count, INSTRUCTION)
        return encode(self.tokenizer, rows, self.shared.max_length, shorten=True).examples

    def full_examples(self, count: int) -> list[Example]:
        """Rows of exactly the maximal length, half of it an answer, made of real rows' tokens."""
        from howto.batches import Example

        tokens = [token for row in self.examples(400) for token in [*row.prompt, *row.completion]]
        size, half = self.shared.max_length, self.shared.max_length // 2
        starts = [number * size % (len(tokens) - size) for number in range(count)]
        return [Example(str(s), tokens[s : s + half], tokens[s + half : s + size]) for s in starts]

    def engine(self, model: PeftModel, examples: list[Example], profile: ProfileTrain, *, compiled: bool) -> Engine:
        """The training engine."""
        from howto.engine import Engine

        pad = self.tokenizer.eos_token_id
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
        from howto.memory import peak_bytes

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


def packed_attention(check: Check) -> Figures:
    """B. Packed attention against float32 row by row, forward and backward, and twice for the same bits."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    from howto.packing import packed_attention

    generator = random.Random(0)
    lengths = [generator.randrange(3, 40 if check.tiny else 400) for _ in range(16)]
    ends = torch.tensor([0, *(sum(lengths[: n + 1]) for n in range(16))], dtype=torch.int32, device=check.device)
    found: Figures = {}
    for heads in (4, 32):
        torch.manual_seed(0)
        parts = [
            torch.randn(1, n, sum(lengths), 64, device=check.device, dtype=check.dtype).requires_grad_()
            for n in (32, heads, heads)
        ]
        upstream = torch.randn(1, sum(lengths), 32, 64, device=check.device, dtype=check.dtype)

        def both(inputs: Any = parts, upstream: Any = upstream) -> list[torch.Tensor]:
            q, k, v = inputs
            output, _ = packed_attention(
                torch.nn.Identity(), q, k, v, None, row_ends=ends, longest_row=max(lengths), scaling=0.125
            )
            return [output, *torch.autograd.grad(output, inputs, upstream)]

        exact: list[Any] = [part.detach().float().requires_grad_() for part in parts]
        pieces = []
        for q, k, v in zip(*(part.split(lengths, dim=2) for part in exact), strict=True):
            k, v = (part.repeat_interleave(32 // heads, dim=1) for part in (k, v))  # noqa: PLW2901
            pieces.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.125))
        output = torch.cat(pieces, dim=2).transpose(1, 2)
        wanted = [output, *torch.autograd.grad(output, exact, upstream.float())]
        once, twice = both(), both()
        found[f"{heads}_heads_of_keys"] = {
            "relative_errors": [
                round(((one.float() - other).norm() / other.norm()).item(), 6)
                for one, other in zip(once, wanted, strict=True)
            ],
            "same_bits": all(torch.equal(one, other) for one, other in zip(once, twice, strict=True)),
            "milliseconds": check.milliseconds(both),
        }
        if heads == 4:
            found["without repeating keys"] = grouped_varlen(check, parts, ends, max(lengths), upstream, wanted)
    return found


def varlen_attention() -> tuple[Any, dict[str, bool]]:
    """Attention of torch for rows of various lengths, and how it is told of fewer heads of keys (torch 2.12 on)."""
    from torch.nn.attention import varlen

    attention: Any = varlen.varlen_attn
    return attention, {"enable_gqa": True} if "enable_gqa" in attention.__kwdefaults__ else {}


def grouped_varlen(  # noqa: PLR0917
    check: Check,
    parts: list[torch.Tensor],
    ends: torch.Tensor,
    longest: int,
    upstream: torch.Tensor,
    wanted: list[torch.Tensor],
) -> Figures:
    """FlashAttention on fewer heads of keys than of queries, which torch before 2.12 has no argument for."""
    import torch

    varlen, more = varlen_attention()

    def both() -> list[torch.Tensor]:
        q, k, v = (part[0].transpose(0, 1) for part in parts)
        output = varlen(q, k, v, ends, ends, longest, longest, scale=0.125, window_size=(-1, 0), **more)
        return [output[None], *torch.autograd.grad(output[None], parts, upstream)]

    try:
        errors = [
            ((one.float() - other).norm() / other.norm()).item() for one, other in zip(both(), wanted, strict=True)
        ]
        return {"relative_errors": [round(e, 6) for e in errors], "milliseconds": check.milliseconds(both)}
    except Exception as error:
        return {"failed": first_line(error)}


def decode_attention(check: Check) -> Figures:
    """C. Attention of a decode step in several ways, and the write into the cache."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    rows, reach, heads, groups, size = (8, 32, 2, 2, 16) if check.tiny else (256, 512, 4, 8, 64)
    torch.manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=check.device, dtype=check.dtype)

    query, new = numbers(rows, heads * groups, 1, size), numbers(rows, heads, size)
    keys, values = (numbers(rows, heads, reach, size) for _ in range(2))
    places = torch.randint(1, reach, (rows,), device=check.device)
    visible = torch.arange(reach, device=check.device) <= places[:, None]
    grouped = query.view(rows, heads, groups, size)
    by_place = [part.transpose(1, 2).contiguous().view(rows * reach, heads, size) for part in (keys, values)]
    starts = torch.arange(rows + 1, device=check.device, dtype=torch.int32) * reach
    ones = torch.arange(rows + 1, device=check.device, dtype=torch.int32)
    used = (places + 1).int()
    varlen, more = varlen_attention()
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "enable_gqa": lambda: scaled_dot_product_attention(
            query, keys, values, attn_mask=visible[:, None, None], enable_gqa=True
        ),
        "grouped": lambda: scaled_dot_product_attention(grouped, keys, values, attn_mask=visible[:, None, None]),
        "grouped, products": lambda: (
            torch.softmax(
                ((grouped @ keys.transpose(2, 3)) * size**-0.5).masked_fill(~visible[:, None, None], -torch.inf), -1
            )
            @ values
        ),
        "flash, seqused_k": lambda: varlen(query[:, :, 0], *by_place, ones, starts, 1, reach, seqused_k=used, **more),
        "flash, seqused_k, a query a group": lambda: varlen(
            grouped.transpose(1, 2).reshape(rows * groups, heads, size),
            *by_place,
            ones * groups,
            starts,
            groups,
            reach,
            seqused_k=used,
        ),
    }
    found: Figures = {}
    exact = ways["enable_gqa"]().float().view(rows, -1)
    for name, way in ways.items():
        try:
            output = way().float()
            if name.endswith("a group"):
                output = output.view(rows, groups, heads, size).transpose(1, 2)
            error = ((output.reshape(rows, -1) - exact).norm() / exact.norm()).item()
            found[name] = {"milliseconds": check.milliseconds(way), "error": round(error, 5), "kernels": kernels(way)}
        except Exception as error:
            found[name] = {"failed": first_line(error)}
    numbered = torch.arange(rows, device=check.device)

    def write(*, deterministic: bool) -> None:
        torch.use_deterministic_algorithms(deterministic)
        keys[numbered, :, places] = new
        torch.use_deterministic_algorithms(True)

    for yes in (True, False):
        taken = check.milliseconds(lambda yes=yes: write(deterministic=yes))  # type: ignore[misc]
        found[f"index_put, {'' if yes else 'not '}deterministic"] = taken
    return found


def self_check(check: Check) -> Figures:
    """D. How far a packed forward pass is from the model's own, and how far one with a leaking mask is."""
    import torch

    from howto.batches import collate, pack
    from howto.loss import response_loss

    model = check.adapted().eval()
    base = model.get_base_model()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    rows = check.examples(200)
    draws = [random.Random(seed).sample(sorted(rows, key=len)[:40], 2) for seed in range(20)]
    middle = sorted(rows, key=len)[len(rows) // 2 - 4 : len(rows) // 2 + 4]
    pad = check.tokenizer.eos_token_id

    def alone(row: Example) -> torch.Tensor:
        inputs = collate([row], pad, check.device).model_inputs()
        return base.get_decoder()(**inputs, use_cache=False).last_hidden_state[0]  # type: ignore[no-any-return]

    with torch.no_grad():
        wanted = [
            sum(response_loss(base, collate([row], pad, check.device), fused=False).item() for row in rows)
            for rows in draws
        ]
        hidden = torch.cat([alone(row) for row in middle]).float()
        engine = check.engine(model, rows, check.profile(1), compiled=False)
        found = [sum(engine.loss(batch).item() for batch in engine.batches(rows)) for rows in draws]
        inputs = pack(middle, check.device, share_prefix=False).model_inputs()
        packed = base.get_decoder()(**inputs, use_cache=False).last_hidden_state[0].float()
        inputs["row_ends"] = inputs["row_ends"][[0, -1]]
        inputs["longest_row"] = len(packed)
        leaking = base.get_decoder()(**inputs, use_cache=False).last_hidden_state[0].float()
    apart = [abs(one - other) / abs(other) for one, other in zip(found, wanted, strict=True)]
    return {
        "loss_relative_mean": round(sum(apart) / len(apart), 6),
        "loss_relative_max": round(max(apart), 6),
        "hidden_relative_norm": round(((packed - hidden).norm() / hidden.norm()).item(), 6),
        "hidden_relative_norm_leaking": round(((leaking - hidden).norm() / hidden.norm()).item(), 6),
    }


def training(check: Check, *, compiled: bool) -> Figures:
    """E, I. Training steps of real rows and of rows of the maximal length; twice for the same adapter."""
    from howto.memory import check_memory
    from howto.training import Trainer

    peak = check.peak_flops()
    found: Figures = {}
    hashes = []
    sizes = {"real": check.examples(check.batch * check.steps), "full": check.full_examples(check.batch * check.steps)}
    for name in ("real", "real", "full") if compiled else ("real",):
        examples, profile = sizes[name], check.profile(check.steps)
        model = check.adapted()
        start = time.perf_counter()
        engine = check.engine(model, examples, profile, compiled=compiled)
        predicted = check_memory(engine, examples, profile, packing=True)
        before = check.peak_memory()
        Trainer(engine, examples, [], check.shared, profile).run()  # compiles, and captures the lengths that come
        check.synchronize()
        set_up = time.perf_counter() - start
        check.reset_memory()
        start = time.perf_counter()
        trainer = Trainer(engine, examples, [], check.shared, profile)
        curve = trainer.run()
        check.synchronize()
        seconds = time.perf_counter() - start
        hashes.append(adapter_hash(model))
        parameters = sum(
            w.numel() for n, w in model.named_parameters() if w.ndim == 2 and "lora" not in n and "embed" not in n
        )
        found[name] = {
            "tokens_per_step": round(curve.tokens / check.steps),
            "milliseconds_per_step": round(seconds / check.steps * 1000, 2),
            "tokens_per_second": round(curve.tokens / seconds),
            "share_of_4n_limit": round(4 * parameters * curve.tokens / seconds / peak, 4),
            "peak_memory_mib": check.peak_memory(),
            "predicted_mib_beside_weights": predicted // 2**20,
            "peak_before_mib": before,
            "set_up_seconds": round(set_up, 1),
            "last_loss": curve.train[-1][-1],
            "graphs": len(engine._graphs._captured) if engine._graphs else 0,
            "gradient_without_graph_apart": graph_error(check, engine, examples[: check.batch]),
        }
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)  # if the section is cut off
        del model, engine, trainer
    found["same_adapter_twice"] = len(set(hashes[:2])) == 1
    return {**found, "adapter": hashes[0][:16], "product_tflops": round(peak / 1e12, 1)}


def graph_error(check: Check, engine: Engine, rows: list[Example]) -> float:
    """How far the gradient of a replayed pass is from that of the same pass without a graph."""
    import torch

    def gradient() -> torch.Tensor:
        engine.model.zero_grad(set_to_none=False)
        for batch in engine.batches(rows):
            torch.autograd.backward(engine.loss(batch, seed=3))
        return torch.cat([w.grad.flatten() for w in engine.model.parameters() if w.grad is not None])

    one = gradient()
    graphs, engine._graphs = engine._graphs, None
    other = gradient()
    engine._graphs = graphs
    return float(round(((one - other).norm() / other.norm()).item(), 7))


def adapter_hash(model: PeftModel) -> str:
    """The sha256 of the trained weights."""
    digest = sha256()
    for _, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            digest.update(weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def profiled(check: Check) -> Figures:
    """F. Kernels of a training step: how many, how busy the device is, and the longest."""
    from howto.training import Trainer

    examples = check.examples(check.batch * 8)
    engine = check.engine(check.adapted(), examples, check.profile(4), compiled=True)
    Trainer(engine, examples, [], check.shared, check.profile(3)).run()
    trainer = Trainer(engine, examples, [], check.shared, check.profile(3))
    return profile_of(check, trainer.run, 3, most=40)


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


def synchronizations(check: Check) -> Figures:
    """G. Where the host waits for the device, by file and line, in training steps and in decoding."""
    from howto.training import Trainer

    examples = check.examples(check.batch * 4)
    engine = check.engine(check.adapted(), examples, check.profile(4), compiled=True)
    Trainer(engine, examples, [], check.shared, check.profile(4)).run()
    trainer = Trainer(engine, examples, [], check.shared, check.profile(4))
    with waiting(check) as in_training:
        trainer.run()
    decoder = flight_and_decoder(check, check.model(), 8)[1]
    with waiting(check) as in_decoding:
        list(decoder.answers(requests(check, 8)))
    return {"training, 4 steps": dict(in_training), "decoding": dict(in_decoding)}


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


def requests(check: Check, count: int) -> list[Any]:
    """Real prompts to be answered."""
    from howto.decoding import Request

    return [Request(number, row.prompt) for number, row in enumerate(check.examples(count))]


def flight_and_decoder(check: Check, model: Any, count: int) -> tuple[Any, Any]:
    """The cache for so many rows in flight, and the decoder over it."""
    import torch

    from howto.answering import PROBE
    from howto.decoding import Decoder
    from howto.prompt import prompt_ids
    from howto.slots import Slots, use_slots

    model.requires_grad_(False)
    new = 8 if check.tiny else 128
    longest = max(len(row.prompt) for row in check.examples(512 if not check.tiny else 16))
    with torch.inference_mode():
        if not use_slots(model, prompt_ids(check.tokenizer, *PROBE)):
            raise RuntimeError("use_slots refused the model")
    flight = Slots(model, count, longest + new)
    decoding = check.decoding.model_copy(update={"max_new_tokens": new})
    return flight, Decoder(model, flight, check.tokenizer, decoding)


def decoding(check: Check) -> Figures:
    """H. Answers to 512 prompts, 256 rows in flight: base and adapter, with graphs and without."""

    from howto.answering import use_unmerged

    prompts, at_once = (16, 8) if check.tiny else (512, 256)
    wanted = requests(check, prompts)
    found: Figures = {}
    for name in ("base", "adapter"):
        model = check.model() if name == "base" else check.adapted().eval()
        if name == "adapter":
            use_unmerged(model, check.dtype)
        flight, decoder = flight_and_decoder(check, model, at_once)
        ways = ("first run", "second run", "no graphs") if name == "base" else ("first run", "second run")
        for way in ways:
            if way == "no graphs":
                flight._graphs = None
            check.reset_memory()
            check.synchronize()
            start = time.perf_counter()
            answers = list(decoder.answers(wanted if way != "no graphs" else wanted[:at_once]))
            check.synchronize()
            seconds = time.perf_counter() - start
            tokens = sum(answer.new_tokens for answer in answers)
            found[f"{name}, {way}"] = {
                "tokens_per_second": round(tokens / seconds),
                "seconds": round(seconds, 2),
                "answers": len(answers),
                "graphs": len(flight._graphs._captured) if flight._graphs else 0,
                "peak_memory_mib": check.peak_memory(),
            }
        found[f"{name}, a step"] = one_step(check, flight)
    found["generate"] = generate(check, at_once)
    return found


def one_step(check: Check, flight: Any) -> Figures:
    """A step of all rows at a reach of 300 places: its time, and its kernels without a graph."""
    import torch

    longest = 20 if check.tiny else 300
    tokens, places = (torch.full((flight.capacity,), n, device=check.device) for n in (5, longest - 1))
    with torch.inference_mode():
        taken = check.milliseconds(lambda: flight.step(tokens, places, longest))
        seen = profile_of(check, lambda: flight.pass_through(tokens, places, longest), 1)
    return {"milliseconds": taken, **seen}


def generate(check: Check, rows: int) -> Figures:
    """Transformers' own generate on one batch of the same prompts."""
    import torch

    model = check.model()
    prompts = [request.prompt for request in requests(check, rows)]
    longest, new = max(map(len, prompts)), 4 if check.tiny else 64
    pad = check.tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=check.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=check.device)
    settings: Figures = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": pad}
    with torch.inference_mode():
        model.generate(ids, attention_mask=mask, **{**settings, "max_new_tokens": 2, "min_new_tokens": 2})
        check.synchronize()
        start = time.perf_counter()
        model.generate(ids, attention_mask=mask, **settings)
        check.synchronize()
    seconds = time.perf_counter() - start
    return {"tokens_per_second": round(rows * new / seconds), "rows": rows, "new_tokens": new}


def peers(check: Check) -> Figures:
    """J. TRL's SFTTrainer and transformers' Trainer on the same rows."""
    profile = check.profile(check.steps)
    examples = check.examples(check.batch * check.steps)
    found: Figures = {}
    for name in ("trl_grouped", "trl_liger", "transformers"):
        try:
            model = check.adapted()
            warm_up = check.warm_up // 2 if not check.tiny else 0
            check.reset_memory()
            losses, seconds = run_peer(
                name, model, examples, check.shared, profile, check.arguments.folder, warm_up=warm_up
            )
            tokens = sum(len(row) for row in examples[warm_up * check.batch :])
            found[name] = {
                "tokens_per_second": round(tokens / seconds),
                "milliseconds_per_step": round(seconds / (check.steps - warm_up) * 1000, 2),
                "peak_memory_mib": check.peak_memory(),
                "last_loss": losses[-1],
            }
            del model
        except Exception as error:
            found[name] = {"failed": first_line(error)}
    return found


def whole_job(check: Check) -> Figures:
    """K. The stages themselves on real weights and real rows: what a person gets, and in how many seconds."""
    from experiments.pipeline import params_with, run_in

    arguments = check.arguments
    if not arguments.gguf:
        return {"skipped": "no --gguf"}
    changes = {
        "profile": "smollm2_dolly",
        "profiles.smollm2_dolly.model.source": str(arguments.gguf.resolve()),
        "profiles.smollm2_dolly.data": {
            "source": str(arguments.rows.resolve()),
            "test_source": str((arguments.rows.parent / "test.jsonl").resolve()),
        },
        "profiles.smollm2_dolly.prepare.test": None,
        "profiles.smollm2_dolly.machine": {
            "device": arguments.device,
            "precision": str(check.dtype).removeprefix("torch."),
        },
        "profiles.smollm2_dolly.train.epochs": 2,
        "profiles.smollm2_dolly.train.micro_batch_size": 16,
        "profiles.smollm2_dolly.infer.batch_size": 256,
    }
    if check.tiny:
        changes |= {
            "profiles.smollm2_dolly.prepare.validation": 4,
            "profiles.smollm2_dolly.train.epochs": 1,
            "infer.max_new_tokens": 8,
        }
    with tempfile.TemporaryDirectory() as folder:
        return run_in(Path(folder), params_with(changes))


SECTIONS: dict[str, tuple[Callable[[Check], Figures], int]] = {
    "A": (machine, 30),
    "B": (packed_attention, 30),
    "C": (decode_attention, 30),
    "D": (self_check, 40),
    "E": (lambda check: training(check, compiled=False), 70),
    "I": (lambda check: training(check, compiled=True), 120),
    "F": (profiled, 90),
    "G": (synchronizations, 40),
    "H": (decoding, 120),
    "J": (peers, 80),
    "K": (whole_job, 240),
}


def first_line(error: Exception) -> str:
    """What an error says, and where it was raised."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = lines[0][:300] if lines else ""
    return f"{type(error).__name__}: {said} ({Path(where.filename).name}:{where.lineno})"


def run_section(name: str, arguments: argparse.Namespace) -> Figures:
    """Run a section in a process of its own."""
    work, limit = SECTIONS[name]
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)

    def child() -> None:
        try:
            found = work(Check(arguments))
        except BaseException as error:
            traceback.print_exc()
            found = {"failed": first_line(error) if isinstance(error, Exception) else type(error).__name__}
        there.send(found)

    start = time.perf_counter()
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    there.close()
    found = {"failed": f"no result within {limit} s"}
    try:
        if here.poll(limit * (5 if arguments.device == "cpu" else 1)):
            found = here.recv()
    except EOFError:
        found = {"failed": "the process died"}
    process.kill()
    process.join()
    return {"section": name, **found, "seconds_of_section": round(time.perf_counter() - start, 1)}


def main() -> None:
    """Run the sections, and print and keep what they find."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes: whether it runs, not how fast")
    parser.add_argument("--sections", default="".join(SECTIONS), help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=460, help="sections that would begin later are left out")
    parser.add_argument("--gguf", type=Path, help="SmolLM2's weights, for section K")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    # Imported once, before the processes are forked; nothing here may touch the GPU.
    import peft
    import torch
    import transformers

    import howto.answering
    import howto.training  # noqa: F401

    assert peft and transformers and not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    start = time.perf_counter()
    result: Figures = {"date": datetime.now(UTC).date().isoformat(), "sections": {}}
    for name in arguments.sections:
        if time.perf_counter() - start > arguments.seconds:
            break
        found = run_section(name, arguments)
        print(json.dumps(found), flush=True)
        result["sections"][name] = found
        if arguments.output:
            write_json(arguments.output, result)
    failed = [name for name, found in result["sections"].items() if "failed" in found]
    print(f"gpu_check: {len(result['sections'])} sections in {time.perf_counter() - start:.0f} s, failed: {failed}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
