"""The pipeline's own code on the real shape of TinyLlama-1.1B, with random weights and the real tokenizer.

Two training steps, save, load, and one short generation: what is timed is real, what is written is noise.

    python -m benchmarks.tinyllama_shape FOLDER [--device cuda] [--rows FILE] [--output FILE]

FOLDER holds TinyLlama's config.json and tokenizer; FILE is a JSONL file with Dolly's columns.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.prepare import cpu_name
from benchmarks.train import rows_of
from howto.core.atomic import write_json
from howto.inference.config import Infer
from howto.modeling.config import Machine, ProfileMachine
from howto.modeling.torch_setup import set_up_torch
from howto.params import read_params
from howto.training.config import ProfileTrain, Train

STEPS, NEW_TOKENS = 2, 16


def main() -> None:
    """Run and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    params = read_params()
    machine = ProfileMachine(device=arguments.device, precision=arguments.precision)
    device = set_up_torch(params.section(Machine), machine)
    shared = params.section(Train)
    profile = ProfileTrain(
        steps=STEPS,
        learning_rate=2e-4,
        batch_size=arguments.batch_size,
        micro_batch_size=arguments.batch_size,
        gradient_checkpointing=False,
        processes=1,
        fsdp=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, shared, profile, device, Path(folder))
    figures["machine"] = describe(device)
    print(json.dumps(figures, indent=2))
    if arguments.output:
        write_json(arguments.output, figures)


def measure(
    arguments: argparse.Namespace, shared: Train, profile: ProfileTrain, device: Any, folder: Path
) -> dict[str, Any]:
    """Build the model, take the steps, and go through a file on disk to a generated text."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from howto.inference.decoder import Request
    from howto.inference.generator import Generator
    from howto.modeling.collate import encode
    from howto.modeling.loading import load_base, load_chat
    from howto.training.forward import Engine
    from howto.training.lora import add_adapter, save_adapter
    from howto.training.memory_check import peak_bytes
    from howto.training.trainer import Trainer

    base, adapter = folder / "base", folder / "adapter"
    shutil.copytree(arguments.folder, base)
    torch.manual_seed(0)
    random_model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(base), dtype=getattr(torch, arguments.precision)
    )
    random_model.save_pretrained(base)
    parameters = random_model.num_parameters()
    del random_model

    rows = rows_of(arguments.rows, 16 * STEPS * profile.batch_size, "Write steps.")
    chat = load_chat(base)
    examples = encode(chat, rows, shared.max_length, shorten=False)[: STEPS * profile.batch_size]
    start = time.perf_counter()
    model = add_adapter(load_base(base, arguments.precision, device), shared.lora, base)
    engine = Engine(model, examples, shared, profile, chat.end)
    loaded = time.perf_counter()
    curve = Trainer(engine, examples, [], shared, profile).run()
    trained = time.perf_counter()
    save_adapter(model, adapter)
    del model, engine
    decoding = read_params().section(Infer).model_copy(update={"max_new_tokens": NEW_TOKENS})
    generator = Generator.load(base, adapter, decoding, batch_size=1, precision=arguments.precision, device=device)
    start_generation = time.perf_counter()
    (answer,) = generator.generate([Request(generator.encode(rows[0]))])
    tokens = sum(len(example) for example in examples)
    return {
        "command": f"python -m benchmarks.tinyllama_shape {shlex.join(sys.argv[1:])}",
        "parameters": parameters,
        "steps": len(curve.train),
        "losses": [loss for *_, loss in curve.train],
        "real_tokens": tokens,
        "load_seconds": round(loaded - start, 1),
        "train_seconds": round(trained - loaded, 1),
        "train_tokens_per_second": round(tokens / (trained - loaded), 1),
        "generated_tokens": answer.new_tokens,
        "generate_seconds": round(time.perf_counter() - start_generation, 1),
        "peak_memory_gib": round(peak_bytes(device) / 2**30, 2),
    }


def describe(device: Any) -> dict[str, str]:
    """The machine that the figures are from."""
    import torch
    import transformers

    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "cpu": f"{cpu_name()}, {torch.get_num_threads()} threads",
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


if __name__ == "__main__":
    main()
