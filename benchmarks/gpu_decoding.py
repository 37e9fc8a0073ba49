"""Section H of `gpu_check`: answers, by this project and by transformers' generate."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu_setup import Check, Figures, profile_of


def requests(check: Check, count: int) -> list[Any]:
    """Real prompts to be answered."""
    from howto.inference.decoder import Request

    return [Request(number, row.prompt) for number, row in enumerate(check.examples(count))]


def flight_and_decoder(check: Check, model: Any, count: int) -> tuple[Any, Any]:
    """The cache for so many rows in flight, and the decoder over it."""
    import torch

    from howto.inference.decoder import Decoder
    from howto.inference.generator import PROBE
    from howto.inference.kv_cache import Slots, use_slots
    from howto.modeling.fused_lora import use_fused_norms
    from howto.modeling.prompt import prompt_ids

    model.requires_grad_(False)
    use_fused_norms(model)
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

    from howto.inference.generator import PROBE, use_unmerged
    from howto.modeling.prompt import prompt_ids

    prompts, at_once = (16, 8) if check.tiny else (512, 256)
    wanted = requests(check, prompts)
    found: Figures = {}
    for name in ("base", "adapter"):
        model = check.model() if name == "base" else check.adapted().eval()
        if name == "adapter":
            use_unmerged(model, check.dtype, prompt_ids(check.tokenizer, *PROBE))
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
