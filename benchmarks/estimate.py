"""What `make estimate` tells, beside what was measured.

python -m benchmarks.estimate [--rows FILE TOKENIZER]

The measured points are those of the committed run (metrics/, dvc.lock), of the other benchmarks (benchmarks/results/),
and of the last training on this machine (metrics/train_speed.json). Times of this machine are told with its speed as it
is measured now, the best of several times, since those points were taken while nothing else ran; times of another one
with the arithmetic that its result names. FILE is JSONL in Dolly's columns and TOKENIZER a folder with TinyLlama's
tokenizer: with them tokens a row are checked too. What is not arithmetic was fitted to these very points: the passes
over memory in howto/speed.py to "train, embedded", "train, 15M" and "infer, embedded"; what prepare and evaluate hold,
the size of the report, and the tokens a byte to theirs. The ratios show how well it fits, not how well it foretells.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.prepare import cpu_name
from howto import costs
from howto.costs import Rows
from howto.estimate import HEAVY, LIGHT, MIB, estimate
from howto.known import NAMES, RESPONSE, TEMPLATE, TOKENS_PER_BYTE, Told, _cut, find_out, read_lock
from howto.params.file import read_params
from howto.params.machine import Machine, ProfileMachine
from howto.params.train import Train
from howto.shapes import Shape, adapter_bytes, published, shape_of, trainable
from howto.speed import Speed, measured_speed
from howto.whole import write_json

RESULTS = Path(__file__).parent / "results"
TRIES = 10
DOLLY_RESPONSE = 0.49  # share of response tokens in rows of at most 512, by TinyLlama's tokenizer


@dataclass(frozen=True)
class Point:
    """A figure, as it is told and as it was measured."""

    what: str
    unit: str
    told: float
    measured: float
    source: str
    exact: bool = False

    def ratio(self) -> float:
        """Told over measured."""
        return self.told / self.measured


def main() -> None:
    """Compare, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, nargs=2, metavar=("FILE", "TOKENIZER"))
    arguments = parser.parse_args()
    params = read_params()
    machine = ProfileMachine(device="cpu", precision="float32")
    embedded, llama = find_out(params, Told()).shape, shape_of(published("models")["llama-15m"], "llama-15m")
    tries = [measured_speed(params.section(Machine), machine, embedded, tokens=1024, slots=128) for _ in range(TRIES)]
    speed = replace(
        tries[0],
        flops=max(one.flops for one in tries),
        few=max(one.few for one in tries),
        bandwidth=max(one.bandwidth for one in tries),
    )
    points = [*exact(embedded), *times(embedded, llama, speed), *memories(embedded, llama, speed), *disks(speed)]
    if arguments.rows:
        points += tokens(*arguments.rows)
    told = [{**asdict(point), "ratio": round(point.ratio(), 3)} for point in points]
    for point in points:
        print(f"{point.what:40} {point.told:>16,.1f} {point.measured:>16,.1f} {point.unit:8} x {point.ratio():.3f}")
    result = {
        "command": "python -m benchmarks.estimate" + (" --rows FILE TOKENIZER" if arguments.rows else ""),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {
            "cpu": cpu_name(),
            "gflops": round(speed.flops / 1e9),
            "gb_per_second": round(speed.bandwidth / 1e9, 1),
        },
        "not_measured": "nothing of this was measured on a GPU",
        "points": told,
    }
    write_json(RESULTS / "estimate.json", result)


def exact(embedded: Shape) -> Iterator[Point]:
    """What follows from the shape alone."""
    lora = read_params().section(Train).lora
    run = _read(Path("metrics/train.json"))
    yield Point(
        "trained parameters, embedded",
        "",
        trainable(embedded, lora),
        run["trainable_parameters"],
        "metrics/train.json",
        True,
    )
    for what, told, path in (
        ("model.safetensors, embedded", embedded.file_bytes(), Path("models/base/model.safetensors")),
        (
            "adapter_model.safetensors, embedded",
            adapter_bytes(embedded, lora),
            Path("models/adapter/adapter_model.safetensors"),
        ),
    ):
        yield Point(what, "bytes", told, path.stat().st_size, str(path), True)
    name = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    tiny, measured = shape_of(published("models")[name], name), _result("tinyllama_shape_cpu")
    yield Point(
        "parameters, TinyLlama", "", tiny.parameters(), measured["parameters"], "tinyllama_shape_cpu.json", True
    )


def times(embedded: Shape, llama: Shape, speed: Speed) -> Iterator[Point]:
    """Training and answering."""
    lora = read_params().section(Train).lora
    run, took = _read(Path("metrics/train.json")), _read(Path("metrics/train_speed.json"))
    used = run["rows"]["used"]
    rows = Rows(used, run["tokens"] / 4 / used, run["response_tokens"] / used)
    work = costs.training_work(embedded, lora, rows, 4, again=False) * 4
    yield Point("train, embedded", "seconds", speed.seconds(work), took["seconds"], "metrics/train_speed.json")
    measured = _result("train_15m_cpu")["measured"]
    for name, again in (("howto", False), ("howto_checkpointing", True)):
        run = measured[name]
        # The benchmark's own limit: 4 FLOP a weight of the matrices and token.
        flops = 4 * (llama.in_layers() + llama.in_head()) * run["tokens_per_second"] / run["share_of_4n_limit"]
        per_row = run["tokens"] / 118
        work = costs.training_work(llama, lora, Rows(118, per_row, per_row * DOLLY_RESPONSE), 4, again=again)
        what = "train, 15M" + (", checkpointing" if again else "")
        yield Point(what, "seconds", replace(speed, flops=flops).seconds(work), run["seconds"], "train_15m_cpu.json")
    result = _result("infer_embedded_cpu")
    run, count = result["measured"]["howto"], result["rows"]
    new = run["new_tokens_per_second"] * run["seconds"] / count
    work = costs.answering_work(embedded, lora, rows_of(count, rows), new, 4, slots=128, longest=2.5 * new)
    yield Point(
        "infer, embedded, 1,000 rows",
        "seconds",
        speed.seconds(work, few=True),
        run["seconds"],
        "infer_embedded_cpu.json",
    )


def rows_of(count: int, like: Rows) -> Rows:
    """So many rows of the same length."""
    return Rows(count, like.tokens, like.response)


def memories(embedded: Shape, llama: Shape, speed: Speed) -> Iterator[Point]:
    """Peaks of a process."""
    lora = read_params().section(Train).lora
    told = estimate(read_params(), Told(), speed, gpus=1, is_gpu=False)
    took = _read(Path("metrics/train_speed.json"))
    train = told.stages["train"].memory / MIB
    yield Point("memory of train, embedded", "MiB", train, took["peak_memory_mib"], "metrics/train_speed.json")
    measured = _result("train_15m_cpu")["measured"]
    for name, again in (("howto", False), ("howto_checkpointing", True)):
        held = costs.training_memory(llama, lora, 4, tokens=8 * 512, response=8 * 512 * DOLLY_RESPONSE, again=again)
        what = "memory of train, 15M" + (", checkpointing" if again else "")
        yield Point(what, "MiB", (HEAVY + held) / MIB, measured[name]["peak_memory_mib"], "train_15m_cpu.json")
    tiny = shape_of(published("models")["TinyLlama/TinyLlama-1.1B-Chat-v1.0"], "TinyLlama")
    held = costs.training_memory(tiny, lora, 2, tokens=2 * 512, response=2 * 512 * DOLLY_RESPONSE, again=False)
    peak = _result("tinyllama_shape_cpu")["peak_memory_gib"] * 1024
    yield Point("memory of train, TinyLlama, bfloat16", "MiB", (HEAVY + held) / MIB, peak, "tinyllama_shape_cpu.json")
    infer = told.stages["infer@adapter"].memory / MIB
    peak = _result("infer_embedded_cpu")["measured"]["howto"]["peak_memory_mib"]
    yield Point("memory of infer, embedded", "MiB", infer, peak, "infer_embedded_cpu.json")
    for run in _result("prepare")["measured"]:
        held = 200 + run["rows"] * 800 / MIB
        yield Point(f"memory of prepare, {run['rows']:,} rows", "MiB", held, run["peak_memory_mib"], "prepare.json")
    run = _result("evaluate")
    held = (LIGHT + run["rows"] * 34_000) / MIB
    yield Point("memory of evaluate, 15,000 rows", "MiB", held, run["peak_memory_mib"], "evaluate.json")


def disks(speed: Speed) -> Iterator[Point]:
    """All that dvc.lock says the committed run has written."""
    told = estimate(read_params(), Told(), speed, gpus=1, is_gpu=False)
    for name, stage in told.stages.items():
        size = sum(out["size"] for out in read_lock()[name]["outs"])
        if size > 2**18:
            yield Point(f"disk of {name}, embedded", "bytes", stage.disk, size, "dvc.lock")
    size = sum(out["size"] for stage in read_lock().values() for out in stage["outs"])
    yield Point("disk of all, embedded", "bytes", told.total().disk, size, "dvc.lock")


def tokens(path: Path, folder: Path) -> Iterator[Point]:
    """Tokens of a row, by its bytes."""
    from benchmarks.train import dolly_rows, read_instruction
    from howto.base import load_tokenizer
    from howto.batches import encode

    rows = dolly_rows(path, 10**9, read_instruction())
    tokenizer = load_tokenizer(folder)
    per_row = TEMPLATE + (path.stat().st_size / len(rows) - NAMES) * TOKENS_PER_BYTE
    for most in (512, 1024):
        found = encode(tokenizer, rows, most, shorten=True).examples
        told, response = _cut(per_row, per_row * RESPONSE, most)
        measured = sum(map(len, found)) / len(found)
        yield Point(f"tokens of a Dolly row, at most {most}", "tokens", told, measured, "Dolly's rows at hand")
        measured = sum(len(row.completion) for row in found) / len(found)
        yield Point(f"of them the response's, at most {most}", "tokens", response, measured, "Dolly's rows at hand")


def _result(name: str) -> dict[str, Any]:
    return _read(RESULTS / f"{name}.json")


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
