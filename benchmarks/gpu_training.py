"""Sections D, E, F, I, J and L of `gpu_check`: training, by this project and by its peers."""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import replace
from hashlib import sha256
from typing import TYPE_CHECKING

from benchmarks.gpu_setup import Check, Figures, first_line, profile_of
from benchmarks.train import run_peer

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from howto.modeling.collate import Example
    from howto.training.forward import Engine


def self_check(check: Check) -> Figures:
    """D. How far apart the engine's ways of computing the same are, on 20 draws of rows, and what is still accepted."""
    from howto.modeling.adapters.fused_lora import HIDDEN_STATE_TOLERANCE, relative_error
    from howto.modeling.collate import collate, pack
    from howto.training.forward import GPU_PROBE_ROWS, GRADIENT_TOLERANCE, nonzero_adapter, response_states

    model = check.adapted().eval()
    base, rows = model.get_base_model(), sorted(check.examples(200), key=len)
    middle, pad = rows[len(rows) // 4 : -(len(rows) // 4)], check.chat.end
    draws = [
        random.Random(seed).sample(middle, min(GPU_PROBE_ROWS, len(middle))) for seed in range(4 if check.tiny else 20)
    ]
    draws = [sorted(draw, key=len) for draw in draws]  # as the engine's batches are
    found: dict[str, list[float]] = {"packed": [], "leaking": []}
    with nonzero_adapter(model):
        alone = [response_states(base, (collate([row], pad, check.device) for row in draw)) for draw in draws]
    engine = check.engine(model, rows, check.profile(1), compiled=True)
    with nonzero_adapter(model):
        for draw, wanted in zip(draws, alone, strict=True):
            batch = pack(draw, check.device)
            found["packed"].append(relative_error(response_states(base, [batch]), wanted))
            assert batch.row_ends is not None
            batch.row_ends[1:-1] = 0  # one row as long as the pack
            leaking = replace(batch, longest_row=batch.input_ids.shape[1])
            found["leaking"].append(relative_error(response_states(base, [leaking]), wanted))
    figures: Figures = {
        name: {"least": round(min(values), 5), "most": round(max(values), 5)} for name, values in found.items()
    }
    limits = {"hidden states": HIDDEN_STATE_TOLERANCE[check.dtype], "gradients": GRADIENT_TOLERANCE[check.dtype]}
    return {**figures, "limits": limits, "compiled": engine.is_compiled, "head": engine.has_fused_loss}


def training(check: Check, *, compiled: bool) -> Figures:
    """E, I. Training steps of real rows and of rows of the maximal length; twice for the same adapter."""
    from howto.training.memory_check import check_memory
    from howto.training.trainer import Trainer

    peak = check.peak_flops()
    found: Figures = {}
    hashes = []
    sizes = {"real": check.examples(check.batch * check.steps), "full": check.full_examples(check.batch * check.steps)}
    for name in ("real", "real", "full") if compiled else ("real",):
        examples, profile = sizes[name], check.profile(check.steps)
        model = check.adapted()
        start = time.perf_counter()
        engine = check.engine(model, examples, profile, compiled=compiled)
        predicted = check_memory(engine, examples, profile)
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
            "graphs": len(engine.graphs.graphs) if engine.graphs else 0,
            "gradient_without_graph_apart": graph_error(check, engine, examples[: check.batch]),
        }
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)  # if the section is cut off
        del model, engine, trainer
    found["same_adapter_twice"] = len(set(hashes[:2])) == 1
    return {**found, "adapter": hashes[0][:16], "product_tflops": round(peak / 1e12, 1)}


def validation_answers(check: Check) -> Figures:
    """L. Answers to validation rows while training: their time, and whether the adapter is the same without."""
    from howto.training.answers import ValidationAnswers
    from howto.training.trainer import Trainer

    profile, count = check.profile(check.steps), 4 if check.tiny else 64
    shared = check.shared.model_copy(update={"validate_every": check.steps // 2})
    rows = check.rows(check.batch * check.steps + count)
    examples = check.encoded(rows)
    train_set, held_out = examples[:-count], examples[-count:]
    found: Figures = {}
    for name in ("without", "with"):
        model = check.adapted()
        engine = check.engine(model, train_set, profile, compiled=True)
        answers = ValidationAnswers(engine, check.chat, rows, held_out, count=count, fsdp=False)
        scorer = answers if name == "with" else None
        start = time.perf_counter()
        trainer = Trainer(engine, train_set, held_out, shared, profile, answers=scorer)
        curve = trainer.run()
        check.synchronize()
        found[name] = {
            "seconds": round(time.perf_counter() - start, 1),
            "answer_seconds": round(trainer.answer_seconds, 1),
            "scores": [rouge_l for *_, rouge_l in curve.validation],
            "adapter": adapter_hash(model)[:16],
        }
        if scorer:
            found["same_score_twice"] = len({scorer.rouge_l(trainer._group) for _ in range(2)}) == 1
        del model, engine, trainer
    found["same_adapter"] = found["without"]["adapter"] == found["with"]["adapter"]
    return {**found, "rows": count}


def graph_error(check: Check, engine: Engine, rows: list[Example]) -> float:
    """How far the gradient of a replayed pass is from that of the same pass without a graph."""
    import torch

    def gradient() -> torch.Tensor:
        engine.model.zero_grad(set_to_none=False)
        for batch in engine.batches(rows):
            torch.autograd.backward(engine.loss(batch, seed=3))
        return torch.cat([w.grad.flatten() for w in engine.model.parameters() if w.grad is not None])

    one = gradient()
    graphs, engine.graphs = engine.graphs, None
    other = gradient()
    engine.graphs = graphs
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
    from howto.training.trainer import Trainer

    examples = check.examples(check.batch * 8)
    engine = check.engine(check.adapted(), examples, check.profile(4), compiled=True)
    Trainer(engine, examples, [], check.shared, check.profile(3)).run()
    trainer = Trainer(engine, examples, [], check.shared, check.profile(3))
    return profile_of(check, trainer.run, 3, most=40)


def peers(check: Check) -> Figures:
    """J. TRL's SFTTrainer and transformers' Trainer on the same rows."""
    profile = check.profile(check.steps)
    examples = check.examples(check.batch * check.steps)
    found: Figures = {}
    for name in ("trl_grouped", "trl_liger", "transformers"):
        try:
            model = check.adapted()
            warm_up = 0 if check.tiny else 5
            check.reset_memory()
            run = run_peer(name, model, examples, check.shared, profile, check.arguments.folder, warm_up=warm_up)
            found[name] = {
                "tokens_per_second": round(run.tokens / run.seconds),
                "milliseconds_per_step": round(run.seconds / (check.steps - warm_up) * 1000, 2),
                "peak_memory_mib": check.peak_memory(),
                "last_loss": run.losses[-1],
            }
            del model
        except Exception as error:
            found[name] = {"failed": first_line(error)}
    return found
