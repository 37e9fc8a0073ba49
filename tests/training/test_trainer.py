"""A step's gradient does not depend on how it is cut, and a killed run ends with the bytes of one that was not."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from howto.core.errors import UserError
from howto.core.schema import Row, read_rows
from howto.modeling.collate import Example, encode
from howto.modeling.loading import load_base, load_chat
from howto.training.checkpoints import Checkpoints
from howto.training.forward import Engine
from howto.training.lora import trained_weights
from howto.training.lr_schedule import learning_rate_factor
from howto.training.trainer import Curve, Trainer, epoch_order
from tests.support.models import SHARED, adapted, train_profile


@dataclass(frozen=True)
class Tiny:
    """A tiny base, and its rows."""

    base: Path
    rows: list[Example]

    def engine(self, dtype: str = "float32", *, packing: bool = True, dropout: float = 0.05, **profile: Any) -> Engine:
        """Return an engine whose adapter changes the outputs, always the same one."""
        torch.manual_seed(0)
        model = adapted(load_base(self.base, dtype, torch.device("cpu")), std=0.05, dropout=dropout)
        model.to(getattr(torch, dtype))
        lora = SHARED.lora.model_copy(update={"dropout": dropout})
        shared = SHARED.model_copy(update={"lora": lora, "packing": packing})
        return Engine(model, self.rows, shared, train_profile(**profile), pad=2)

    def trainer(self, engine: Engine, shared: dict[str, Any] | None = None, **profile: Any) -> Trainer:
        """Train on 40 rows, five steps an epoch, and validate on 16 others."""
        train_params = SHARED.model_copy(update=shared or {})
        settings = train_profile(**{"steps": 15, "learning_rate": 1e-2, **profile})
        return Trainer(engine, self.rows[:40], self.rows[40:56], train_params, settings)


@pytest.fixture(scope="module")
def tiny_run(finished: Path) -> Tiny:
    base, rows = finished / "models/base", read_rows(finished / "data/prepared/train.jsonl", Row)
    return Tiny(base, encode(load_chat(base), rows, 512, shorten=False))


def gradient(engine: Engine, rows: list[Example]) -> torch.Tensor:
    """Return the adapter's gradient of one optimizer step."""
    tokens = sum(len(row.completion) for row in rows)
    for batch in engine.batches(rows):
        torch.autograd.backward(engine.loss(batch, seed=1) / tokens)
    return torch.cat([weight.grad.flatten() for weight in trained_weights(engine.model).values()])  # type: ignore[union-attr]


def losses(curve: Curve) -> list[float]:
    return [loss for _, _, loss, _ in curve.validation]


@pytest.mark.parametrize("packing", [True, False])
def test_a_rows_loss_in_a_batch_is_its_loss_alone(tiny_run: Tiny, packing: bool) -> None:
    engine = tiny_run.engine("float64", packing=packing)
    alone = [engine.loss(next(engine.batches([row]))).item() for row in tiny_run.rows[:8]]
    (together,) = engine.batches(tiny_run.rows[:8])
    assert engine.loss(together).item() == pytest.approx(math.fsum(alone), rel=1e-12)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_a_steps_gradient_does_not_depend_on_how_it_is_cut(tiny_run: Tiny, precision: str, tolerance: float) -> None:
    def of(size: int, packing: bool) -> torch.Tensor:
        engine = tiny_run.engine(precision, packing=packing, dropout=0.0, micro_batch_size=size)
        return gradient(engine, tiny_run.rows[:7])  # the last micro-batch is not full

    alone = of(1, False)
    assert alone.norm() > 0
    for size, packing in ((2, False), (8, False), (1, True), (2, True), (4, True), (8, True)):
        # Norms are computed in float32. Gradients of a shared prefix are summed before they are rounded.
        limit = max(tolerance, 1e-7) if packing and size > 1 else tolerance
        assert (of(size, packing) - alone).norm() <= limit * alone.norm(), (size, packing)


@pytest.mark.parametrize("packing", [True, False])
def test_checkpointing_gives_the_same_gradient_also_with_dropout(tiny_run: Tiny, packing: bool) -> None:
    settings: dict[str, Any] = {"packing": packing, "dropout": 0.3}
    plain = gradient(tiny_run.engine("float64", **settings), tiny_run.rows[:8])
    again = gradient(tiny_run.engine("float64", **settings, gradient_checkpointing=True), tiny_run.rows[:8])
    torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-15)


def test_an_epoch_has_every_row_once_in_an_order_drawn_from_seed_and_epoch(tiny_run: Tiny) -> None:
    orders = [[row.id for row in epoch_order(tiny_run.rows, *drawn)] for drawn in ((42, 1), (42, 2), (43, 1), (42, 1))]
    assert all(sorted(order) == sorted(row.id for row in tiny_run.rows) for order in orders)
    assert len(set(map(tuple, orders))) == 3 and orders[0] == orders[3]


def test_the_learning_rate_rises_from_zero_and_falls_to_it() -> None:
    factors = [learning_rate_factor("cosine", 0.1, step, 100) for step in range(100)]
    assert factors[:11] == sorted(factors[:11]) and max(factors) == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[-1] < 0.01
    assert learning_rate_factor("linear", 0.1, 55, 100) == pytest.approx(0.5)
    assert learning_rate_factor("constant", 0.0, 99, 100) == 1.0


def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(tiny_run: Tiny) -> None:
    engine = tiny_run.engine()
    frozen = {name: w.clone() for name, w in engine.model.named_parameters() if not w.requires_grad}
    curve = tiny_run.trainer(engine, steps=None, epochs=3).run()
    assert losses(curve)[-1] < losses(curve)[0] and [step for step, *_ in curve.validation] == [5, 10, 15]
    assert curve.kept_loss == min(losses(curve)) and curve.tokens == 3 * sum(map(len, tiny_run.rows[:40]))
    assert all(torch.equal(w, frozen[name]) for name, w in engine.model.named_parameters() if not w.requires_grad)


def test_validations_come_after_each_epoch_after_every_so_many_steps_and_at_the_end(tiny_run: Tiny) -> None:
    curve = tiny_run.trainer(tiny_run.engine(), {"validate_every": 2}, steps=8).run()
    assert len(curve.train) == 8 and curve.train[-1][1] == pytest.approx(8 / 5)
    assert [step for step, *_ in curve.validation] == [2, 4, 5, 6, 8]


@pytest.mark.parametrize("keep", ["best_loss", "last"])
def test_the_adapter_that_is_kept_is_the_best_one_or_the_last(tiny_run: Tiny, keep: str) -> None:
    diverging = {"warmup_ratio": 0.9, "max_grad_norm": 1e9, "validate_every": 1, "keep": keep}
    trainer = tiny_run.trainer(tiny_run.engine(), diverging, learning_rate=1.0)
    curve = trainer.run()
    assert losses(curve)[-1] > min(losses(curve)), "this learning rate was to overshoot"
    assert curve.kept_loss == (min(losses(curve)) if keep == "best_loss" else losses(curve)[-1])
    assert round(trainer.mean_loss(tiny_run.rows[40:56]), 6) == curve.kept_loss


def test_patience_ends_a_run_that_does_not_improve(tiny_run: Tiny) -> None:
    curve = tiny_run.trainer(tiny_run.engine(), {"patience": 2}, steps=100, learning_rate=1e-30).run()
    assert [step for step, *_ in curve.validation] == [5, 10, 15] and curve.kept_step == 5


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_rows(tiny_run: Tiny) -> None:
    engine, rows = tiny_run.engine(), tiny_run.rows[:1]
    with torch.no_grad():
        next(iter(trained_weights(engine.model).values())).fill_(float("nan"))
    with pytest.raises(UserError, match=rf"step 1 \(rows {rows[0].id}\), got nan"):
        Trainer(engine, rows, [], SHARED, train_profile()).run()


class Killed(Exception):
    """What the test does to a run in place of SIGKILL."""


LORA_PLUS = {"lora": SHARED.lora.model_copy(update={"plus_ratio": 4.0})}


@pytest.fixture(scope="module")
def uninterrupted(tiny_run: Tiny) -> tuple[Engine, Curve]:
    engine = tiny_run.engine(dropout=0.2)
    return engine, tiny_run.trainer(engine, LORA_PLUS, steps=12).run()


@pytest.mark.parametrize("step", [1, 5, 8], ids=["before a validation", "at one", "between two"])
def test_a_resumed_run_ends_as_if_it_had_never_stopped(
    uninterrupted: tuple[Engine, Curve], tiny_run: Tiny, tmp_path: Path, step: int
) -> None:
    class KillingCheckpoints(Checkpoints):
        due = True

        def save(self, saved: int, tensors: dict[str, torch.Tensor], state: dict[str, object]) -> None:
            super().save(saved, tensors, state)
            if saved == step:
                raise Killed

    with pytest.raises(Killed):
        tiny_run.trainer(tiny_run.engine(dropout=0.2), LORA_PLUS, steps=12).run(KillingCheckpoints(tmp_path, "key"))
    engine, (complete, curve) = tiny_run.engine(dropout=0.2), uninterrupted
    resumed = tiny_run.trainer(engine, LORA_PLUS, steps=12).run(Checkpoints(tmp_path, "key"))
    assert resumed.resumed_at == step
    assert (resumed.train, resumed.validation, resumed.kept_step) == (curve.train, curve.validation, curve.kept_step)
    weights = trained_weights(engine.model)
    assert all(torch.equal(weights[name], weight) for name, weight in trained_weights(complete.model).items())
