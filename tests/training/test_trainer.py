"""A step's gradient does not depend on how it is cut, and a run that was killed ends as one that was not."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from howto.core.errors import UserError
from howto.core.schema import Row, read_rows
from howto.modeling.collate import Example, collate, encode, pack, steps_of_epoch
from howto.modeling.loading import load_base, load_tokenizer
from howto.params import read_params
from howto.training.checkpoints import Checkpoints
from howto.training.config import Lora, ProfileTrain, Train
from howto.training.forward import Engine
from howto.training.lora import add_adapter, trained_weights
from howto.training.lr_schedule import learning_rate_factor
from howto.training.trainer import Curve, Trainer
from tests.conftest import run_stage

CPU = torch.device("cpu")
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
def profile(finished: Path) -> ProfileTrain:
    return read_params(finished / "params.yaml").section(ProfileTrain)


@pytest.fixture
def make_engine(finished: Path, examples: list[Example], shared: Train, profile: ProfileTrain) -> MakeEngine:
    """An engine whose adapter does something, and whose params differ from the small run's as said."""

    def make(
        precision: str = "float32",
        lora: dict[str, object] | None = None,
        gradient_checkpointing: bool = False,
        size: int = 8,
        **changes: object,
    ) -> Engine:
        torch.manual_seed(0)
        params = shared.model_copy(update={"lora": shared.lora.model_copy(update=lora or {}), **changes})
        cut = profile.model_copy(update={"micro_batch_size": size, "gradient_checkpointing": gradient_checkpointing})
        base = finished / "models/base"
        model = add_adapter(load_base(base, precision, CPU), params.lora, base).to(getattr(torch, precision))
        with torch.no_grad():
            for name, weight in trained_weights(model).items():
                if "lora_B" in name:
                    weight.normal_(std=0.05)
        return Engine(model, examples, params, cut, pad=EOS)

    return make


def gradient(engine: Engine, rows: list[Example], *, seed: int = 1) -> torch.Tensor:
    """The adapter's gradient after one optimizer step's rows."""
    engine.model.zero_grad()
    tokens = sum(len(row.completion) for row in rows)
    for batch in engine.batches(rows):
        torch.autograd.backward(engine.loss(batch, seed=seed) / tokens)
    return torch.cat([weight.grad.flatten() for weight in trained_weights(engine.model).values()])  # type: ignore[union-attr]


def test_labels_are_the_response_and_its_end_of_sequence_and_nothing_else(examples: list[Example]) -> None:
    rows = examples[:6]
    wanted = [(place, row) for row in range(len(rows)) for place in range(len(rows[row].prompt), len(rows[row]))]
    batch = collate(rows, EOS, CPU)
    length = batch.input_ids.shape[1]
    assert batch.places.tolist() == [length * row + place - 1 for place, row in wanted]
    assert batch.labels.tolist() == [token for row in rows for token in row.completion]
    assert (batch.labels == EOS).sum() == len(rows)  # </s> is learnt once a row; padding, of the same id, never
    packed = pack(rows, CPU)
    assert packed.labels.tolist() == batch.labels.tolist()
    flat = packed.input_ids.flatten().tolist()
    assert [flat[place + 1] for place in packed.places.tolist()] == packed.labels.tolist()


@pytest.mark.parametrize("packing", [True, False])
def test_a_rows_loss_beside_others_is_its_loss_alone(
    make_engine: MakeEngine, examples: list[Example], packing: bool
) -> None:
    engine = make_engine("float64", packing=packing)
    alone = [engine.loss(next(engine.batches([row]))).item() for row in examples[:8]]
    (together,) = engine.batches(examples[:8])
    assert engine.loss(together).item() == pytest.approx(math.fsum(alone), rel=1e-12)


def test_no_token_of_a_pack_sees_another_row(make_engine: MakeEngine, examples: list[Example]) -> None:
    engine = make_engine("float64")
    first, second = examples[:2]
    other = Example("x", [5] * len(first.prompt), [6] * len(first.completion))

    def hidden_of_second(beside: Example) -> torch.Tensor:
        batch = pack([beside, second], CPU)
        out = engine.base.get_decoder()(**batch.model_inputs(), use_cache=False).last_hidden_state
        return out[0, len(beside) :]  # type: ignore[no-any-return]

    engine.model.eval()
    with torch.no_grad():
        assert torch.equal(hidden_of_second(first), hidden_of_second(other))


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_a_steps_gradient_does_not_depend_on_how_it_is_cut(
    make_engine: MakeEngine, examples: list[Example], precision: str, tolerance: float
) -> None:
    ragged = examples[:7]  # a last window that is not full
    ways = [(8, True), (1, True), (2, True), (4, True), (8, False), (1, False), (2, False)]
    found = [
        gradient(make_engine(precision, {"dropout": 0.0}, packing=packing, size=size), ragged) for size, packing in ways
    ]
    alone = found[ways.index((1, False))]
    assert alone.norm() > 0
    for (size, packing), one in zip(ways, found, strict=True):
        # Norms are computed in float32. Of a prefix that rows share, their gradients are added before they are rounded.
        limit = max(tolerance, 1e-7) if packing and size > 1 else tolerance
        assert (one - alone).norm() <= limit * alone.norm(), (size, packing)


@pytest.mark.parametrize("packing", [True, False])
def test_layers_that_are_computed_again_give_the_same_gradient_also_with_dropout(
    make_engine: MakeEngine, examples: list[Example], packing: bool
) -> None:
    lora = {"dropout": 0.3}
    plain = gradient(make_engine("float64", lora, packing=packing), examples[:8])
    again = gradient(make_engine("float64", lora, packing=packing, gradient_checkpointing=True), examples[:8])
    torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-15)


def test_every_row_is_in_every_epoch_once_and_the_order_is_drawn_from_the_seed(examples: list[Example]) -> None:
    epochs = [[row.id for step in steps_of_epoch(examples, 16, 42, epoch) for row in step] for epoch in (1, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(example.id for example in examples)
    assert epochs[0] != epochs[1]
    assert epochs[0] == [row.id for step in steps_of_epoch(examples, 16, 42, 1) for row in step]
    assert epochs[0] != [row.id for step in steps_of_epoch(examples, 16, 43, 1) for row in step]


def test_a_step_takes_as_many_rows_as_params_say(examples: list[Example]) -> None:
    sizes = [len(rows) for rows in steps_of_epoch(examples, 8, 42, 1)]
    assert sizes[:-1] == [8] * (len(sizes) - 1) and sum(sizes) == len(examples)


def test_a_row_that_is_too_long_loses_context_or_is_left_out_and_its_answer_stays_whole(finished: Path) -> None:
    tokenizer = load_tokenizer(finished / "models/base")
    rows = read_rows(finished / "data/prepared/train.jsonl", Row)
    whole = {e.id: e for e in encode(tokenizer, rows, 100_000, shorten=False).examples}
    limit = sorted(map(len, whole.values()))[len(rows) // 2]
    dropped, shortened = (encode(tokenizer, rows, limit, shorten=shorten) for shorten in (False, True))
    assert not dropped.shortened and len(dropped.examples) + len(dropped.too_long) == len(rows)
    assert shortened.shortened and len(shortened.examples) + len(shortened.too_long) == len(rows)
    assert set(shortened.too_long) < set(dropped.too_long)
    with_context = {row.id for row in rows if row.context}
    for example in shortened.examples:
        assert len(example) <= limit and example.completion == whole[example.id].completion
        cut = example.id in shortened.shortened
        assert cut == (example.prompt != whole[example.id].prompt) and (not cut or example.id in with_context)


def test_the_schedule_rises_from_zero_and_falls_to_it() -> None:
    factors = [learning_rate_factor("cosine", 0.1, step, 100) for step in range(100)]
    assert factors[:11] == sorted(factors[:11]) and max(factors) == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[-1] < 0.01
    assert learning_rate_factor("linear", 0.1, 55, 100) == pytest.approx(0.5)
    assert learning_rate_factor("constant", 0.0, 99, 100) == 1.0


def train(engine: Engine, examples: list[Example], shared: Train, profile: ProfileTrain, **more: object) -> Curve:
    """Train on 40 rows, five steps an epoch, and look at 16 others."""
    profile = profile.model_copy(update={"epochs": 3, **more})
    return Trainer(engine, examples[:40], examples[40:56], shared, profile).run()


def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(
    make_engine: MakeEngine, examples: list[Example], shared: Train, profile: ProfileTrain
) -> None:
    engine = make_engine()
    frozen = {name: w.clone() for name, w in engine.model.named_parameters() if not w.requires_grad}
    curve = train(engine, examples, shared, profile)
    losses = [loss for _, _, loss in curve.validation]
    assert losses[-1] < losses[0] and [step for step, _, _ in curve.validation] == [5, 10, 15]
    assert curve.kept_loss == min(losses) and curve.tokens == 3 * sum(map(len, examples[:40]))
    assert all(torch.equal(w, frozen[name]) for name, w in engine.model.named_parameters() if not w.requires_grad)


def test_training_goes_on_for_so_many_steps_and_is_looked_at_every_so_many(
    make_engine: MakeEngine, examples: list[Example], shared: Train, profile: ProfileTrain
) -> None:
    often = shared.model_copy(update={"validate_every": 2})
    curve = train(make_engine(), examples, often, profile, epochs=None, steps=8)
    assert len(curve.train) == 8 and curve.train[-1][1] == pytest.approx(8 / 5)
    assert [step for step, _, _ in curve.validation] == [2, 4, 5, 6, 8]


def test_the_adapter_that_is_kept_is_the_best_one_or_the_last(
    make_engine: MakeEngine, examples: list[Example], shared: Train, profile: ProfileTrain
) -> None:
    wild = {"warmup_ratio": 0.9, "max_grad_norm": 1e9, "validate_every": 1}  # good at first, then too fast
    for keep in ("best", "last"):
        engine = make_engine()
        params = shared.model_copy(update={**wild, "keep": keep})
        tried = profile.model_copy(update={"epochs": 3, "learning_rate": 1.0})
        trainer = Trainer(engine, examples[:40], examples[40:56], params, tried)
        curve = trainer.run()
        losses = [loss for _, _, loss in curve.validation]
        assert curve.kept_loss == (min(losses) if keep == "best" else losses[-1])
        assert round(trainer.mean_loss(examples[40:56]), 6) == curve.kept_loss
    assert losses[-1] > min(losses), "this learning rate was to overshoot"


def test_patience_ends_a_run_that_gets_no_better(
    make_engine: MakeEngine, examples: list[Example], shared: Train, profile: ProfileTrain
) -> None:
    wild = {"schedule": "constant", "warmup_ratio": 0.0, "max_grad_norm": 1e9, "patience": 2}
    curve = train(make_engine(), examples, shared.model_copy(update=wild), profile, epochs=50, learning_rate=0.5)
    since = [loss for step, _, loss in curve.validation if step > curve.kept_step]
    assert len(curve.train) < 250 and len(since) == 2 and min(since) >= (curve.kept_loss or 0)


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_rows(
    make_engine: MakeEngine, examples: list[Example], shared: Train, profile: ProfileTrain
) -> None:
    engine = make_engine()
    with torch.no_grad():
        next(iter(trained_weights(engine.model).values())).fill_(float("nan"))
    with pytest.raises(UserError, match=f"the loss is nan in step 1 .*{examples[0].id}"):
        Trainer(engine, examples[:1], [], shared, profile).run()


class Killed(Exception):
    """What a test does to a run in place of SIGKILL."""


@pytest.mark.parametrize("at", [1, 4, 5, 6, 11, 14])
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(
    make_engine: MakeEngine, examples: list[Example], shared: Train, profile: ProfileTrain, tmp_path: Path, at: int
) -> None:
    params = shared.model_copy(update={"lora": shared.lora.model_copy(update={"dropout": 0.2, "plus_ratio": 4.0})})
    lora = {"dropout": 0.2, "plus_ratio": 4.0}
    longer = profile.model_copy(update={"epochs": 3})
    whole = make_engine(lora=lora)
    curve = Trainer(whole, examples[:40], examples[40:56], params, longer).run()

    class Dying(Checkpoints):
        def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, object]) -> None:
            super().save(step, tensors, state)
            if step == at:
                raise Killed
            self._next = 0.0  # after every step

    with pytest.raises(Killed):
        Trainer(make_engine(lora=lora), examples[:40], examples[40:56], params, longer).run(
            Dying(tmp_path, "key", seconds=0.0)
        )
    engine = make_engine(lora=lora)
    resumed = Trainer(engine, examples[:40], examples[40:56], params, longer).run(Checkpoints(tmp_path, "key"))
    assert resumed.resumed_at == at
    assert (resumed.train, resumed.validation, resumed.kept_step) == (curve.train, curve.validation, curve.kept_step)
    before, after = trained_weights(whole.model), trained_weights(engine.model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_a_model_whose_rows_cannot_be_packed_is_not_packed_in_silence(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import howto.modeling.packed_attention

    def leaky(module: object, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object):  # type: ignore[no-untyped-def]
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out.transpose(1, 2), None

    monkeypatch.setattr(howto.modeling.packed_attention, "packed_attention", leaky)
    with pytest.raises(UserError, match=r"train.packing: a LlamaForCausalLM does not support packed"):
        make_engine()


def test_training_twice_gives_the_same_bytes(workplace: Path) -> None:
    files = ["models/adapter/adapter_model.safetensors", "models/adapter/adapter_config.json", "metrics/train.json"]
    before = [(workplace / name).read_bytes() for name in files]
    done = run_stage(workplace, "stages.train")
    assert done.returncode == 0, done.stderr
    assert [(workplace / name).read_bytes() for name in files] == before


def test_the_stage_leaves_a_peft_folder_curves_and_its_speed_and_no_checkpoint(finished: Path) -> None:
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
    assert not list((finished / "models/checkpoints").glob("*"))


def test_a_target_that_is_in_no_layer_is_an_error_that_lists_what_there_is(finished: Path, shared: Train) -> None:
    base = finished / "models/base"
    for changes, said in (
        ({"target_modules": ["query"]}, r"target_modules: query is in no layer .*down_proj.*q_proj"),
        ({"target_modules": ["q_proj", "query"]}, r"target_modules: query is in no layer"),
        ({"rank_pattern": {"keys": 4}}, r"rank_pattern: keys is in no layer"),
        ({"layers": [0, 7]}, r"layers: \[7\]: the base model has layers 0 to 1"),
    ):
        with pytest.raises(UserError, match=said):
            add_adapter(load_base(base, "float32", CPU), shared.lora.model_copy(update=changes), base)


KNOBS: list[dict[str, object]] = [
    {"target_modules": ["q_proj", "v_proj"]},
    {"exclude_modules": ["down_proj"]},
    {"layers": [0]},
    {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4.0}},
    {"init": "gaussian"},
    {"init": "orthogonal"},
    {"init": "olora"},
    {"init": "pissa"},
    {"rslora": True},
    {"dora": True},
    {"plus_ratio": 2.0},
    {"dropout": 0.0},
]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_what_is_saved_on_the_base_as_it_was_is_the_model_that_was_trained(
    finished: Path,
    examples: list[Example],
    shared: Train,
    profile: ProfileTrain,
    tmp_path: Path,
    knobs: dict[str, object],
) -> None:
    from peft import PeftModel

    from howto.training.lora import CHANGES_THE_BASE, save_adapter

    base = finished / "models/base"
    lora = Lora.model_validate({**shared.lora.model_dump(), **knobs})
    params = shared.model_copy(update={"lora": lora})
    torch.manual_seed(0)
    model = add_adapter(load_base(base, "float32", CPU), lora, base)
    initial = tmp_path / "initial" if lora.init in CHANGES_THE_BASE else None
    if initial:
        save_adapter(model, initial)
    engine = Engine(model, examples, params, profile, pad=EOS)
    trainer = Trainer(engine, examples[:40], examples[40:56], params, profile)
    before = trainer.mean_loss(examples[40:56])
    assert (trainer.run().kept_loss or 0) < before
    save_adapter(model, tmp_path / "saved", initial)
    loaded = PeftModel.from_pretrained(load_base(base, "float32", CPU), str(tmp_path / "saved")).eval()
    rows = list(islice(examples, 40, 56))
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([[*row.prompt, *row.completion]])
            torch.testing.assert_close(
                loaded(input_ids=ids).logits,
                model.eval()(
                    input_ids=ids, position_ids=None, row_ends=torch.tensor([0, len(row)]), longest_row=len(row)
                ).logits,
                rtol=2e-4,
                atol=2e-4,
            )
