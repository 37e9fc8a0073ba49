"""The loss is on response and end of sequence alone, and does not depend on how a step is cut."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from howto.base import load_base, load_tokenizer
from howto.batches import IGNORED, Example, encode, micro_batches, steps_of_epoch
from howto.loss import response_loss
from howto.params.file import read_params
from howto.params.train import Lora, ProfileTrain, Train
from howto.rows import Row, read_rows
from howto.stop import Stop
from stages.train import add_adapter, fit, learning_rate_factor
from tests.conftest import run_stage

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def examples(finished: Path) -> list[Example]:
    tokenizer = load_tokenizer(finished / "models/base")
    return encode(tokenizer, read_rows(finished / "data/prepared/train.jsonl", Row), 512)[0]


@pytest.fixture(scope="module")
def shared(finished: Path) -> Train:
    return read_params(finished / "params.yaml").section(Train)


@pytest.fixture(scope="module")
def profile(finished: Path) -> ProfileTrain:
    return read_params(finished / "params.yaml").section(ProfileTrain)


@pytest.fixture
def adapted(finished: Path, shared: Train) -> Iterator[PeftModel]:
    torch.manual_seed(0)
    without_dropout = shared.model_copy(update={"lora": shared.lora.model_copy(update={"dropout": 0.0})})
    model = add_adapter(load_base(finished / "models/base", "float32", CPU), without_dropout)
    with torch.no_grad():  # so that the adapter does something
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    yield model


def gradients(model: PeftModel, batches: list[list[Example]], size: int) -> torch.Tensor:
    """The adapter's gradient after one optimizer step's rows, cut into micro batches of `size`."""
    model.zero_grad()
    tokens = sum(len(row.completion) for rows in batches for row in rows)
    for rows in batches:
        for batch in micro_batches(rows, size, pad=2):
            torch.autograd.backward(response_loss(model.get_base_model(), batch, CPU) / tokens)
    return torch.cat([w.grad.flatten() for w in model.parameters() if w.requires_grad])


def test_labels_are_the_response_and_its_end_of_sequence_and_nothing_else(examples: list[Example]) -> None:
    for batch in micro_batches(examples[:16], 8, pad=2):
        for ids, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
            example = next(e for e in examples if e.prompt + e.completion == ids[: len(e)])
            assert labels[: len(example.prompt)] == [IGNORED] * len(example.prompt)
            assert labels[len(example.prompt) : len(example)] == example.completion
            assert labels[len(example.prompt) :][len(example.completion) - 1] == 2  # </s> is learnt ...
            assert set(labels[len(example) :]) <= {IGNORED}  # ... and the same id as padding is not


def test_the_loss_is_the_models_own_cross_entropy_on_the_labels(adapted: PeftModel, examples: list[Example]) -> None:
    adapted.eval()
    for batch in micro_batches(examples[:6], 3, pad=2):
        logits = adapted(input_ids=batch.input_ids).logits
        wanted = cross_entropy(
            logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        torch.testing.assert_close(response_loss(adapted.get_base_model(), batch, CPU), wanted)


def test_a_rows_loss_does_not_depend_on_the_rows_beside_it(adapted: PeftModel, examples: list[Example]) -> None:
    adapted.eval()
    alone = [response_loss(adapted.get_base_model(), b, CPU) for b in micro_batches(examples[:8], 1, pad=2)]
    (together,) = micro_batches(examples[:8], 8, pad=2)
    torch.testing.assert_close(response_loss(adapted.get_base_model(), together, CPU), torch.stack(alone).sum())


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_micro_batches_of_any_size_give_the_same_gradient(
    adapted: PeftModel, examples: list[Example], size: int
) -> None:
    whole = gradients(adapted, [examples[:8]], 8)
    torch.testing.assert_close(gradients(adapted, [examples[:8]], size), whole, rtol=1e-4, atol=1e-7)


def test_every_row_is_in_every_epoch_once_and_the_order_is_drawn_from_the_seed(examples: list[Example]) -> None:
    epochs = [[row.id for step in steps_of_epoch(examples, 16, 42, epoch) for row in step] for epoch in (1, 2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(example.id for example in examples)
    assert epochs[0] != epochs[1]
    assert epochs[0] == [row.id for step in steps_of_epoch(examples, 16, 42, 1) for row in step]
    assert epochs[0] != [row.id for step in steps_of_epoch(examples, 16, 43, 1) for row in step]


def test_a_row_that_is_too_long_is_left_out_whole_and_named(finished: Path) -> None:
    tokenizer = load_tokenizer(finished / "models/base")
    rows = read_rows(finished / "data/prepared/train.jsonl", Row)
    everything, none = encode(tokenizer, rows, 100_000)
    limit = sorted(len(example) for example in everything)[len(everything) // 2]
    short, too_long = encode(tokenizer, rows, limit)
    assert not none and too_long and len(short) + len(too_long) == len(rows)
    assert all(example.completion[-1] == tokenizer.eos_token_id for example in short)


def test_the_schedule_rises_from_zero_and_falls_to_it(shared: Train) -> None:
    params = shared.model_copy(update={"warmup_ratio": 0.1})
    factors = [learning_rate_factor(params, step, 100) for step in range(100)]
    assert factors[:11] == sorted(factors[:11]) and max(factors) == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[-1] < 0.01
    linear = params.model_copy(update={"schedule": "linear"})
    assert learning_rate_factor(linear, 55, 100) == pytest.approx(0.5)


def test_training_lowers_the_loss_and_leaves_the_base_as_it_was(
    finished: Path, examples: list[Example], shared: Train, profile: ProfileTrain
) -> None:
    torch.manual_seed(0)
    model = add_adapter(load_base(finished / "models/base", "float32", CPU), shared)
    frozen = {name: w.clone() for name, w in model.named_parameters() if not w.requires_grad}
    more = profile.model_copy(update={"epochs": 3})
    curve = fit(model, examples[:48], examples[48:64], shared, more, device=CPU, pad=2)
    losses = [loss for _, _, loss in curve.validation]
    assert losses[-1] < losses[0] and len(losses) == 3
    assert curve.kept_loss == min(losses)
    assert all(torch.equal(w, frozen[name]) for name, w in model.named_parameters() if not w.requires_grad)


def test_the_best_epoch_is_kept_not_the_last(
    finished: Path, examples: list[Example], shared: Train, profile: ProfileTrain
) -> None:
    wild = profile.model_copy(update={"epochs": 4, "learning_rate": 0.5})
    constant = shared.model_copy(update={"schedule": "constant", "warmup_ratio": 0.0, "max_grad_norm": 1e9})
    curves = {}
    for keep in ("best", "last"):
        torch.manual_seed(0)
        model = add_adapter(load_base(finished / "models/base", "float32", CPU), constant)
        curves[keep] = fit(
            model, examples[:32], examples[48:64], constant.model_copy(update={"keep": keep}), wild, device=CPU, pad=2
        )
    losses = [loss for _, _, loss in curves["best"].validation]
    assert curves["best"].kept_loss == min(losses)
    assert curves["last"].kept_epoch == 4 and curves["last"].kept_loss == losses[-1]


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_rows(
    adapted: PeftModel, examples: list[Example], shared: Train, profile: ProfileTrain
) -> None:
    with torch.no_grad():
        next(w for w in adapted.parameters() if w.requires_grad).fill_(float("nan"))
    with pytest.raises(Stop, match=f"the loss is nan in step 1 .*{examples[0].id}"):
        fit(adapted, examples[:1], [], shared, profile, device=CPU, pad=2)


def test_a_target_that_matches_no_module_is_an_error_that_lists_what_there_is(finished: Path, shared: Train) -> None:
    lora = Lora(r=8, alpha=16, dropout=0.0, target_modules=["query"])
    with pytest.raises(Stop, match=r"none of \['query'\].*down_proj.*q_proj"):
        add_adapter(load_base(finished / "models/base", "float32", CPU), shared.model_copy(update={"lora": lora}))


def test_training_twice_gives_the_same_bytes(workplace: Path) -> None:
    files = ["models/adapter/adapter_model.safetensors", "models/adapter/adapter_config.json", "metrics/train.json"]
    before = [(workplace / name).read_bytes() for name in files]
    done = run_stage(workplace, "stages.train")
    assert done.returncode == 0, done.stderr
    assert [(workplace / name).read_bytes() for name in files] == before


def test_the_adapter_is_a_peft_folder_of_safetensors(finished: Path) -> None:
    names = {path.name for path in (finished / "models/adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "base_model.json"}
    config = json.loads((finished / "models/adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (8, 16, "models/base")
