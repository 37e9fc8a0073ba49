"""Section H of `gpu_check`: answers of this project and of transformers' generate."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu_setup import Check, Figures, profile_of


def requests(check: Check, count: int) -> list[Any]:
    """Return requests with real prompts."""
    from howto.inference.decoder import Request

    return [Request(example) for example in check.examples(count)]


def cache_and_decoder(check: Check, model: Any, count: int) -> tuple[Any, Any]:
    """Return a KV cache for `count` rows, and its decoder."""
    import torch

    from howto.inference.decoder import Decoder
    from howto.inference.kv_cache import KVCache, use_kv_cache
    from howto.modeling.adapters.fused_lora import use_fused_norms
    from howto.modeling.chat import PROBE

    model.requires_grad_(False)
    use_fused_norms(model)
    new = 8 if check.tiny else 128
    longest = max(len(row.prompt) for row in check.examples(512 if not check.tiny else 16))
    with torch.inference_mode():
        if not use_kv_cache(model, check.chat.prompt_ids(PROBE)):
            raise RuntimeError("the model does not work with KVCache")
    cache = KVCache(model, count, longest + new)
    decoding = check.decoding.model_copy(update={"max_new_tokens": new})
    return cache, Decoder(model, cache, check.chat, decoding)


def decoding(check: Check) -> Figures:
    """H. Answers to 512 prompts, 256 rows in flight: base and adapter, with graphs and without."""

    from howto.inference.generator import use_unmerged_adapter
    from howto.modeling.chat import PROBE

    prompts, at_once = (16, 8) if check.tiny else (512, 256)
    asked = requests(check, prompts)
    found: Figures = {}
    for name in ("base", "adapter"):
        model = check.model() if name == "base" else check.adapted().eval()
        if name == "adapter":
            use_unmerged_adapter(model, check.dtype, check.chat.prompt_ids(PROBE))
        cache, decoder = cache_and_decoder(check, model, at_once)
        ways = ("first run", "second run", "no graphs") if name == "base" else ("first run", "second run")
        for way in ways:
            if way == "no graphs":
                cache._graphs = None
            check.reset_memory()
            check.synchronize()
            start = time.perf_counter()
            answers = list(decoder.decode(asked if way != "no graphs" else asked[:at_once]))
            check.synchronize()
            seconds = time.perf_counter() - start
            tokens = sum(answer.new_tokens for answer in answers)
            found[f"{name}, {way}"] = {
                "tokens_per_second": round(tokens / seconds),
                "seconds": round(seconds, 2),
                "answers": len(answers),
                "graphs": len(cache._graphs.captured) if cache._graphs else 0,
                "peak_memory_mib": check.peak_memory(),
            }
        found[f"{name}, a step"] = one_step(check, cache)
    found["generate"] = generate(check, at_once)
    return found


def one_step(check: Check, cache: Any) -> Figures:
    """Return the time of a step of all rows that attend to 300 positions, and its kernels without a graph."""
    import torch

    reach = 20 if check.tiny else 300
    tokens, positions = (torch.full((cache.capacity,), n, device=check.device) for n in (5, reach - 1))
    with torch.inference_mode():
        taken = check.milliseconds(lambda: cache.decode(tokens, positions, reach))
        seen = profile_of(check, lambda: cache.decode_eagerly(tokens, positions, reach), 1)
    return {"milliseconds": taken, **seen}


def generate(check: Check, rows: int) -> Figures:
    """Measure transformers' own generate on one batch of the same prompts."""
    import torch

    model = check.model()
    prompts = [request.row.prompt for request in requests(check, rows)]
    longest, new = max(map(len, prompts)), 4 if check.tiny else 64
    pad = check.chat.end
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
