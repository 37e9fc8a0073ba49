"""A step's gradient does not depend on how it is cut, and a killed run ends with the bytes of one that was not."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from howto.core.errors import UserError
from howto.core.schema import Row, read_rows
from howto.modeling.collate import Example, encode
from howto.modeling.loading import load_base, load_tokenizer
from howto.params import read_params
from howto.training.checkpoints import Checkpoints
from howto.training.config import Train
from howto.training.forward import Engine
from howto.training.lora import add_adapter, trained_weights
from howto.training.lr_schedule import learning_rate_factor
from howto.training.trainer import Curve, Trainer
from tests.conftest import run_stage
from tests.support.models import train_profile

EOS = 2
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def examples(finished: Path) -> list[Example]:
    tokenizer = load_tokenizer(finished / "models/base")
    return encode(tokenizer, read_rows(finished / "data/prepared/train.jsonl", Row), 512, shorten=False).examples


@pytest.fixture(scope="module")
def shared(finished: Path) -> Train:
    return read_params(finished / "params.yaml").section(Train)


@pytest.fixture(scope="module")
def make_engine(finished: Path, examples: list[Example], shared: Train) -> MakeEngine:
    """Make an engine whose adapter changes the outputs."""

    def make(
        precision: str = "float32",
        *,
        lora: dict[str, object] | None = None,
        packing: bool = True,
        checkpointing: bool = False,
        size: int = 8,
    ) -> Engine:
        torch.manual_seed(0)
        params = shared.model_copy(
            update={"lora": shared.lora.model_copy(update=lora or {}), "packing": packing, "max_length": 512}
        )
        base = finished / "models/base"
        model = add_adapter(load_base(base, precision, torch.device("cpu")), params.lora, base)
        model.to(getattr(torch, precision))
        with torch.no_grad():
            for name, weight in trained_weights(model).items():
                if "lora_B" in name:
                    weight.normal_(std=0.05)
        profile = train_profile(micro_batch_size=size, gradient_checkpointing=checkpointing)
        return Engine(model, examples, params, profile, pad=EOS)

    return make


def gradient(engine: Engine, rows: list[Example]) -> torch.Tensor:
    """Return the adapter's gradient of one optimizer step."""
    tokens = sum(len(row.completion) for row in rows)
    for batch in engine.batches(rows):
        torch.autograd.backward(engine.loss(batch, seed=1) / tokens)
    return torch.cat([weight.grad.flatten() for weight in trained_weights(engine.model).values()])  # type: ignore[union-attr]


@pytest.mark.parametrize("packing", [True, False])
def test_a_rows_loss_in_a_batch_is_its_loss_alone(
    make_engine: MakeEngine, examples: list[Example], packing: bool
) -> None:
    engine = make_engine("float64", packing=packing)
    alone = [engine.loss(next(engine.batches([row]))).item() for row in examples[:8]]
    (together,) = engine.batches(examples[:8])
    assert engine.loss(together).item() == pytest.approx(math.fsum(alone), rel=1e-12)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_a_steps_gradient_does_not_depend_on_how_it_is_cut(
    make_engine: MakeEngine, examples: list[Example], precision: str, tolerance: float
) -> None:
    def of(size: int, packing: bool) -> torch.Tensor:
        engine = make_engine(precision, lora={"dropout": 0.0}, packing=packing, size=size)
        return gradient(engine, examples[:7])  # the last micro-batch is not full

    alone = of(1, False)
    assert alone.norm() > 0
    for size, packing in ((2, False), (8, False), (1, True), (2, True), (4, True), (8, True)):
        # Norms are computed in float32. Gradients of a shared prefix are summed before they are rounded.
        limit = max(tolerance, 1e-7) if packing and size > 1 else tolerance
        assert (of(size, packing) - alone).norm() <= limit * alone.norm(), (size, packing)


@pytest.mark.parametrize("packing", [True, False])
def test_checkpointing_gives_the_same_gradient_also_with_dropout(
    make_engine: MakeEngine, examples: list[Example], packing: bool
) -> None:
    plain, checkpointed = (
        gradient(make_engine("float64", lora={"dropout": 0.3}, packing=packing, checkpointing=again), examples[:8])
        for again in (False, True)
    )
    torch.testing.assert_close(checkpointed, plain, rtol=1e-12, atol=1e-15)


def test_the_learning_rate_rises_from_zero_and_falls_to_it() -> None:
    factors = [learning_rate_factor("cosine", 0.1, step, 100) for step in range(100)]
    assert factors[:11] == sorted(factors[:11]) and max(factors) == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[-1] < 0.01
    assert learning_rate_factor("linear", 0.1, 55, 100) == pytest.approx(0.5)
    assert learning_rate_factor("constant", 0.0, 99, 100) == 1.0


def trainer(engine: Engine, examples: list[Example], shared: Train, **profile: Any) -> Trainer:
    """Train on 40 rows, five steps an epoch, and validate on 16 others."""
    settings = {"steps": 15, "learning_rate": 1e-2, **profile}
    return Trainer(engine, examples[:40], examples[40:56], shared, train_profile(**settings))


def losses(curve: Curve) -> list[float]:
    return [loss for _, _, loss in curve.validation]


def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(
    make_engine: MakeEngine, examples: list[Example], shared: Train
) -> None:
    engine = make_engine()
    frozen = {name: w.clone() for name, w in engine.model.named_parameters() if not w.requires_grad}
    curve = trainer(engine, examples, shared, steps=None, epochs=3).run()
    assert losses(curve)[-1] < losses(curve)[0] and [step for step, *_ in curve.validation] == [5, 10, 15]
    assert curve.kept_loss == min(losses(curve)) and curve.tokens == 3 * sum(map(len, examples[:40]))
    assert all(torch.equal(w, frozen[name]) for name, w in engine.model.named_parameters() if not w.requires_grad)


def test_validations_come_after_each_epoch_after_every_so_many_steps_and_at_the_end(
    make_engine: MakeEngine, examples: list[Example], shared: Train
) -> None:
    often = shared.model_copy(update={"validate_every": 2})
    curve = trainer(make_engine(), examples, often, steps=8).run()
    assert len(curve.train) == 8 and curve.train[-1][1] == pytest.approx(8 / 5)
    assert [step for step, *_ in curve.validation] == [2, 4, 5, 6, 8]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_adapter_that_is_kept_is_the_best_one_or_the_last(
    make_engine: MakeEngine, examples: list[Example], shared: Train, keep: str
) -> None:
    diverging = {"warmup_ratio": 0.9, "max_grad_norm": 1e9, "validate_every": 1, "keep": keep}
    trained = trainer(make_engine(), examples, shared.model_copy(update=diverging), learning_rate=1.0)
    curve = trained.run()
    assert losses(curve)[-1] > min(losses(curve)), "this learning rate was to overshoot"
    assert curve.kept_loss == (min(losses(curve)) if keep == "best" else losses(curve)[-1])
    assert round(trained.mean_loss(examples[40:56]), 6) == curve.kept_loss


def test_patience_ends_a_run_that_does_not_improve(
    make_engine: MakeEngine, examples: list[Example], shared: Train
) -> None:
    patient = shared.model_copy(update={"patience": 2})
    curve = trainer(make_engine(), examples, patient, steps=100, learning_rate=1e-30).run()
    assert [step for step, *_ in curve.validation] == [5, 10, 15] and curve.kept_step == 5


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_rows(
    make_engine: MakeEngine, examples: list[Example], shared: Train
) -> None:
    engine = make_engine()
    with torch.no_grad():
        next(iter(trained_weights(engine.model).values())).fill_(float("nan"))
    with pytest.raises(UserError, match=rf"step 1 \(rows {examples[0].id}\), got nan"):
        Trainer(engine, examples[:1], [], shared, train_profile()).run()


class Killed(Exception):
    """What the test does to a run in place of SIGKILL."""


class KillingCheckpoints(Checkpoints):
    """Saves after every step, and kills the run after one of them."""

    last_step = 0

    @property
    def due(self) -> bool:
        return True

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, object]) -> None:
        super().save(step, tensors, state)
        if step == self.last_step:
            raise Killed


RESUMABLE = {"dropout": 0.2, "plus_ratio": 4.0}


@pytest.fixture(scope="module")
def uninterrupted(make_engine: MakeEngine, examples: list[Example], shared: Train) -> tuple[Engine, Curve]:
    engine = make_engine(lora=RESUMABLE)
    params = shared.model_copy(update={"lora": shared.lora.model_copy(update=RESUMABLE)})
    return engine, trainer(engine, examples, params, steps=12).run()


@pytest.mark.parametrize("step", [1, 5, 8], ids=["before a validation", "at one", "between two"])
def test_a_resumed_run_ends_as_if_it_had_never_stopped(
    uninterrupted: tuple[Engine, Curve],
    make_engine: MakeEngine,
    examples: list[Example],
    shared: Train,
    tmp_path: Path,
    step: int,
) -> None:
    params = shared.model_copy(update={"lora": shared.lora.model_copy(update=RESUMABLE)})
    killing = KillingCheckpoints(tmp_path, "key")
    killing.last_step = step
    with pytest.raises(Killed):
        trainer(make_engine(lora=RESUMABLE), examples, params, steps=12).run(killing)
    engine, (complete, curve) = make_engine(lora=RESUMABLE), uninterrupted
    resumed = trainer(engine, examples, params, steps=12).run(Checkpoints(tmp_path, "key"))
    assert resumed.resumed_at == step
    assert (resumed.train, resumed.validation, resumed.kept_step) == (curve.train, curve.validation, curve.kept_step)
    weights = trained_weights(engine.model)
    assert all(torch.equal(weights[name], weight) for name, weight in trained_weights(complete.model).items())


def test_training_twice_gives_the_same_bytes_and_leaves_no_checkpoint(workplace: Path) -> None:
    files = ["models/adapter/adapter_model.safetensors", "models/adapter/adapter_config.json", "metrics/train.json"]
    before = [(workplace / name).read_bytes() for name in files]
    done = run_stage(workplace, "stages.train")
    assert done.returncode == 0, done.stderr
    assert [(workplace / name).read_bytes() for name in files] == before
    assert not list((workplace / "models/checkpoints").glob("*"))


def test_the_stage_writes_a_peft_folder_curves_and_its_speed(finished: Path) -> None:
    names = {path.name for path in (finished / "models/adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "base_model.json"}
    config = json.loads((finished / "models/adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (8, 16, "models/base")
    metrics = json.loads((finished / "metrics/train.json").read_text(encoding="utf-8"))
    with (finished / "metrics/train_loss.csv").open(encoding="utf-8") as file:
        steps = list(csv.DictReader(file))
    assert len(steps) == metrics["steps"] and float(steps[-1]["train_loss"]) == metrics["train_loss"]
    speed = json.loads((finished / "metrics/train_speed.json").read_text(encoding="utf-8"))
    assert speed["tokens"] == metrics["tokens"] > metrics["response_tokens"] and speed["peak_memory_mib"] > 100
