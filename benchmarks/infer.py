"""Compare this project's inference with transformers' `generate`: same model, adapter, prompts and greedy decoding.

python -m benchmarks.infer [FOLDER] [--rows 120] [--precision bfloat16]
    FOLDER has models/base, models/adapter and data/prepared of a run, such as this repository after `make run`.
python -m benchmarks.infer FOLDER --random-weights --data ROWS [--device cuda] [--rows 512]
    FOLDER has a tokenizer and a config.json (../shared/data/tinyllama), ROWS is a JSON-lines file in Dolly's columns.
    Weights are random, so that time and memory are real and the text is noise; no answer ends by itself.

Time starts when the model is loaded, merged and warmed up, and ends with the last answer. On a GPU each engine is
warmed up: engines that capture graphs do all of their work once, and `generate` answers a few prompts in a few tokens.
`generate_8` is the usual way: batches of 8 in file order, padded on the left, with the adapter as PEFT loads it.
`generate_64_sorted` uses batches of 64, the longest prompts first. `continuous_batching` is transformers' own. All run
in this process, one after the other. `same_answers` is the share of answers equal to those of `generate` row by row in
the same precision.
"""

from __future__ import annotations

import argparse
import copy
import gc
import inspect
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.prepare import cpu_name
from benchmarks.train import read_instruction, rows_of
from howto.core.atomic import write_json
from howto.core.schema import Row, read_rows
from howto.inference.config import Infer, ProfileInfer
from howto.modeling.config import Machine, ProfileMachine
from howto.params import read_params
from howto.training.config import Train

RESULTS = Path(__file__).parent / "results"
BATCH = 8
FEW_PROMPTS, FEW_TOKENS = 16, 8  # that `generate` is warmed up with


def main() -> None:
    """Measure, print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path())
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="default: float32 on a CPU, bfloat16 on a GPU"
    )
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--checked", type=int, default=16, help="rows that `generate` also answers one by one")
    parser.add_argument("--batch-size", type=int, help="rows in flight (default: the profile's)")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--peers", nargs="*", default=["generate_8", "generate_64_sorted", "continuous_batching"])
    parser.add_argument("--warm-up", action=argparse.BooleanOptionalAction, help="default: on a GPU only")
    parser.add_argument("--output", type=Path, help="default: a file in benchmarks/results")
    arguments = parser.parse_args()
    warm_up = arguments.device == "cuda" if arguments.warm_up is None else arguments.warm_up
    params = read_params(Path(__file__).parent.parent / "params.yaml")
    precision = arguments.precision or ("bfloat16" if arguments.device == "cuda" else "float32")

    from howto.modeling.torch_setup import set_up_torch

    machine = ProfileMachine.model_validate({"device": arguments.device, "precision": precision})
    device = set_up_torch(params.section(Machine), machine)
    decoding = params.section(Infer)
    if arguments.max_new_tokens:
        decoding = decoding.model_copy(update={"max_new_tokens": arguments.max_new_tokens})
    size = arguments.batch_size or (256 if arguments.random_weights else params.section(ProfileInfer).batch_size)
    with tempfile.TemporaryDirectory() as name:
        base, adapter = arguments.folder / "models/base", arguments.folder / "models/adapter"
        if arguments.random_weights:
            base, adapter = random_model(arguments.folder, Path(name), params.section(Train), precision)
            rows = rows_of(arguments.data, arguments.rows, read_instruction())
        else:
            parts = ("test", "validation", "train")
            rows = [row for part in parts for row in read_rows(arguments.folder / f"data/prepared/{part}.jsonl", Row)]
        rows = rows[: arguments.rows]
        measured = measure(
            base,
            adapter,
            rows,
            decoding,
            size=size,
            precision=precision,
            device=device,
            peers=arguments.peers,
            checked=arguments.checked,
            warm_up=warm_up,
        )
    result = {
        "command": f"python -m benchmarks.infer {' '.join(sys.argv[1:])}",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "device": name_of(device),
        "precision": precision,
        "rows": len(rows),
        "rows_in_flight": size,
        "warmed_up": warm_up,
        "measured": measured,
    }
    print(json.dumps(result, indent=2))
    other = f"_{precision}" if arguments.precision else ""
    shape = arguments.folder.name if arguments.random_weights else "smollm2"
    write_json(arguments.output or RESULTS / f"infer_{shape}_{arguments.device}{other}.json", result)


def measure(
    base: Path,
    adapter: Path,
    rows: list[Row],
    decoding: Infer,
    *,
    size: int,
    precision: str,
    device: Any,
    peers: list[str],
    checked: int,
    warm_up: bool,
) -> dict[str, dict[str, float]]:
    """Return the figures of this project and of its peers."""
    import torch

    from howto.modeling.adapters.adapter import load_adapter
    from howto.modeling.loading import load_base, load_chat

    ours = Ours(base, adapter, rows, decoding, size=size, precision=precision, device=device)
    measured = {"howto": timed("howto", ours.answer, ours.answer if warm_up else None, len(ours.requests), device)}
    prompts = [request.row.prompt for request in ours.requests]
    answers = [ours.answers[request] for request in ours.requests]
    del ours  # free its memory for the peers
    gc.collect()
    tokenizer = load_chat(base).tokenizer
    model = load_adapter(load_base(base, precision, device), adapter, base)
    for name in peers:
        try:
            peer = Peer.of(name, model, tokenizer, prompts, decoding.max_new_tokens)
            first = partial(peer.warm_up, name) if warm_up else None
            measured[name] = timed(name, getattr(peer, name), first, len(prompts), device)
        except Exception as error:  # a peer that does not run here is a finding, not a failure of this benchmark
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    if checked:
        peer = Peer(model, tokenizer, prompts, decoding.max_new_tokens)
        with torch.inference_mode():
            alone = [peer.batch([place])[0] for place in range(min(checked, len(prompts)))]
        same = [
            answer == tokenizer.decode(ids, skip_special_tokens=True).strip()
            for ids, answer in zip(alone, answers, strict=False)
        ]
        measured["howto"]["same_answers"] = round(sum(same) / len(same), 4)
    for figures in measured.values():
        figures["howto_is_times_as_fast"] = round(measured["howto"]["rows_per_second"] / figures["rows_per_second"], 2)
    return measured


def timed(
    name: str, work: Callable[[], int], warm_up: Callable[[], object] | None, rows: int, device: Any
) -> dict[str, float]:
    """Return the speed of `work`, which returns its number of new tokens; the warm-up is not timed."""
    import torch

    from howto.training.memory_check import peak_bytes

    if warm_up:
        print(f"{name}: warming up", file=sys.stderr, flush=True)
        warm_up()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    print(f"{name}: {rows} rows", file=sys.stderr, flush=True)
    start = time.perf_counter()
    tokens = work()
    seconds = time.perf_counter() - start
    figures = {
        "seconds": round(seconds, 2),
        "rows_per_second": round(rows / seconds, 2),
        "new_tokens_per_second": round(tokens / seconds, 1),
        "peak_memory_mib": round(peak_bytes(device) / 2**20),
    }
    print(f"{name}: {figures}", file=sys.stderr, flush=True)
    return figures


class Ours:
    """This project's generator, loaded and with encoded rows."""

    def __init__(
        self, base: Path, adapter: Path, rows: list[Row], decoding: Infer, *, size: int, precision: str, device: Any
    ) -> None:
        from howto.inference.decoder import Request
        from howto.inference.generator import Generator

        self._generator = Generator.load(base, adapter, decoding, batch_size=size, precision=precision, device=device)
        self.requests = [Request(row) for row in map(self._generator.encode, rows) if row.prompt]
        self.answers: dict[Request, str] = {}

    def answer(self) -> int:
        """Answer all rows that fit, and return the number of new tokens."""
        tokens = 0
        for answer in self._generator.generate(self.requests, progress="howto"):
            self.answers[answer.request] = answer.text
            tokens += answer.new_tokens
        return tokens


class Peer:
    """The engines of transformers."""

    def __init__(self, model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int) -> None:
        from transformers import GenerationConfig

        self._model, self._prompts, self._eos = model, prompts, tokenizer.eos_token_id
        self._tokenizer = tokenizer
        self._config = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=self._eos, pad_token_id=self._eos
        )

    @classmethod
    def of(cls, name: str, model: Any, tokenizer: Any, prompts: list[list[int]], max_new_tokens: int) -> Peer:
        """Return a peer for the engine `name`: continuous batching needs the adapter merged."""
        if name == "continuous_batching":
            model = copy.deepcopy(model).merge_and_unload()
        return cls(model, tokenizer, prompts, max_new_tokens)

    def warm_up(self, name: str) -> None:
        """Do some of the work, or all of it if graphs of its sizes are captured.

        The prompts are reversed, so that no cached prefix shortens the timed work.
        """
        prompts, tokens = [prompt[::-1] for prompt in self._prompts], self._config.max_new_tokens
        if name != "continuous_batching":
            prompts, tokens = prompts[:FEW_PROMPTS], min(FEW_TOKENS, tokens)
        getattr(Peer(self._model, self._tokenizer, prompts, tokens), name)()

    def generate_8(self) -> int:
        """In batches of 8, in file order."""
        return self._all(list(range(len(self._prompts))), BATCH)

    def generate_64_sorted(self) -> int:
        """In batches of 64, the longest prompts first."""
        return self._all(sorted(range(len(self._prompts)), key=lambda place: -len(self._prompts[place])), 64)

    def continuous_batching(self) -> int:
        """By transformers' `generate_batch`, with a manager that persists between calls."""
        generate = self._model.generate_batch
        more = {"persistent_manager": True} if "persistent_manager" in inspect.signature(generate).parameters else {}
        outputs = generate(inputs=self._prompts, generation_config=self._config, progress_bar=False, **more)
        return sum(len(output.generated_tokens) for output in outputs.values())

    def batch(self, places: list[int]) -> list[list[int]]:
        """Return the new tokens of some prompts, without the end of sequence."""
        import torch

        longest = max(len(self._prompts[place]) for place in places)
        ids = torch.full((len(places), longest), self._eos)
        mask = torch.zeros_like(ids)
        for row, place in enumerate(places):
            ids[row, longest - len(self._prompts[place]) :] = torch.tensor(self._prompts[place])
            mask[row, longest - len(self._prompts[place]) :] = 1
        device = self._model.device
        output = self._model.generate(
            input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=self._config
        )
        found = output[:, longest:].tolist()
        return [row[: row.index(self._eos)] if self._eos in row else row for row in found]

    def _all(self, order: list[int], size: int) -> int:
        from tqdm import tqdm

        starts = tqdm(range(0, len(order), size), desc=f"generate {size}", disable=None)
        return sum(len(ids) for start in starts for ids in self.batch(order[start : start + size]))


def random_model(folder: Path, target: Path, train: Train, precision: str) -> tuple[Path, Path]:
    """Save a base of the shape in FOLDER/config.json and an adapter with nonzero B, both with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from howto.modeling.loading import load_base
    from howto.training.lora import add_adapter, save_adapter

    base, adapter = target / "base", target / "adapter"
    shutil.copytree(folder, base)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=getattr(torch, precision)).save_pretrained(
        base
    )
    adapted = add_adapter(load_base(base, precision, torch.device("cpu")), train.lora, base)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    save_adapter(adapted, adapter)
    return base, adapter


def name_of(device: Any) -> str:
    """Return the name of the device."""
    import torch

    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
