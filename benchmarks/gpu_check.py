"""Check this project on a GPU in under eight minutes: is it right, how fast is it, and where does the time go?

python -m benchmarks.gpu_check FOLDER --rows FILE [--sections ABC...] [--output FILE] [--device cpu --tiny]

FOLDER holds a model's config.json and tokenizer; the weights are random, so times are real and texts are noise. FILE is
a JSONL file with Dolly's columns. Each section runs in a process of its own with a time limit, and prints one line of
JSON. If one fails, it prints its error and the others continue. benchmarks/README.md explains how to set up a machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu_attention import decode_attention, packed_attention
from benchmarks.gpu_decoding import cache_and_decoder, decoding, requests
from benchmarks.gpu_setup import Check, Figures, first_line, machine, waiting
from benchmarks.gpu_training import peers, profiled, self_check, training, validation_answers
from howto.core.atomic import write_json


def synchronizations(check: Check) -> Figures:
    """G. Where the host waits for the device, by file and line, in training steps and in decoding."""
    from howto.training.trainer import Trainer

    examples = check.examples(check.batch * 4)
    engine = check.engine(check.adapted(), examples, check.profile(4), compiled=True)
    Trainer(engine, examples, [], check.shared, check.profile(4)).run()
    trainer = Trainer(engine, examples, [], check.shared, check.profile(4))
    with waiting(check) as in_training:
        trainer.run()
    decoder = cache_and_decoder(check, check.model(), 8)[1]
    with waiting(check) as in_decoding:
        list(decoder.decode(requests(check, 8)))
    return {"training, 4 steps": dict(in_training), "decoding": dict(in_decoding)}


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
    "D": (self_check, 90),  # the layers are compiled here; later sections find them in the compiler's cache
    "I": (lambda check: training(check, compiled=True), 120),
    "F": (profiled, 60),
    "G": (synchronizations, 40),
    "H": (decoding, 120),
    "E": (lambda check: training(check, compiled=False), 70),
    "J": (peers, 80),
    "K": (whole_job, 240),
    "L": (validation_answers, 90),
}


COMPILING = "DIFGL"


def run_section(name: str, arguments: argparse.Namespace) -> Figures:
    """Run a section in a process of its own; with --tiny those that compile in this one, so that they do it once."""
    work, limit = SECTIONS[name]
    here, there = multiprocessing.get_context("fork").Pipe(duplex=False)

    def figures() -> Figures:
        try:
            return work(Check(arguments))
        except BaseException as error:
            traceback.print_exc()
            return {"failed": first_line(error) if isinstance(error, Exception) else type(error).__name__}

    def child() -> None:
        there.send(figures())

    start = time.perf_counter()
    if arguments.tiny and name in COMPILING:
        return {"section": name, **figures(), "seconds_of_section": round(time.perf_counter() - start, 1)}
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

    import howto.inference.generator
    import howto.training.trainer  # noqa: F401

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
