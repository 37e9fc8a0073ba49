"""Rows in flight have the logits that the model's own forward pass gives to each alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from howto.inference.cuda_graphs import first_cause, rounded
from howto.inference.kv_cache import NAME, OneRow, Slots, use_slots
from howto.modeling.collate import Example
from tests.support.models import gemma2, llama, mistral

VOCABULARY = 50
PROBE = list(range(3, 13))


def rows(count: int, seed: int = 0) -> list[list[int]]:
    """Rows of 1 to 20 tokens."""
    chance = random.Random(seed)
    return [[chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 20))] for _ in range(count)]


def output_lock(model: PreTrainedModel, row: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]  # type: ignore[no-any-return]


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_rows_that_come_go_and_move_have_their_own_logits(heads: int) -> None:
    plain, model = (llama(VOCABULARY, key_value_heads=heads).double() for _ in range(2))
    assert use_slots(model, PROBE)
    slots = Slots(model, 6, 30)
    texts = rows(6)
    found = torch.cat([slots.enter(texts[:2], 0), slots.enter(texts[2:6], 2)])
    chance = random.Random(1)
    for _ in range(8):
        for row, logits in zip(texts, found, strict=True):
            torch.testing.assert_close(logits, output_lock(plain, row), rtol=1e-9, atol=1e-9)
        if len(texts) > 3:  # one leaves, and the last one takes its slot
            gone = chance.randrange(len(texts) - 1)
            slots.move(len(texts) - 1, gone)
            texts[gone] = texts.pop()
        for row in texts:
            row.append(chance.randrange(VOCABULARY))
        places = torch.tensor([len(row) - 1 for row in texts])
        found = slots.step(torch.tensor([row[-1] for row in texts]), places, int(places.max()) + 1)


@pytest.mark.parametrize("kind", [Slots, OneRow])
def test_logits_at_the_response_are_the_models_own(kind: type[Slots] | type[OneRow]) -> None:
    plain, model = (llama(VOCABULARY, key_value_heads=2).double() for _ in range(2))
    flight = OneRow(model)
    if kind is Slots:
        assert use_slots(model, PROBE)
        flight = Slots(model, 2, 30)  # type: ignore[assignment]
    examples = [Example("", row, answer) for row, answer in zip(rows(4), rows(4, seed=9), strict=True)]
    wanted = []
    for example in examples:
        logits = plain(input_ids=torch.tensor([[*example.prompt, *example.completion]])).logits[0]
        wanted.append(logits[len(example.prompt) - 1 : -1])
    torch.testing.assert_close(flight.logits(examples), torch.cat(wanted), rtol=1e-9, atol=1e-9)


def test_a_step_that_is_rounded_up_has_the_logits_of_one_that_is_not() -> None:
    model = llama(VOCABULARY, key_value_heads=2).double()
    assert use_slots(model, PROBE)
    texts = rows(5)
    plain, padded = Slots(model, 8, 40), Slots(model, 8, 40)
    for slots in (plain, padded):
        slots.enter(texts, 0)
    tokens, places = torch.tensor([3, 4, 5, 6, 7]), torch.tensor([len(row) for row in texts])
    count, reach = rounded(5, int(places.max()) + 1, 8, 40)
    assert (count, reach) == (8, 40)
    wide = [torch.nn.functional.pad(values, (0, count - 5)) for values in (tokens, places)]
    found = padded.pass_through(wide[0], wide[1], reach)[:5]
    torch.testing.assert_close(found, plain.step(tokens, places, int(places.max()) + 1), rtol=1e-12, atol=1e-12)
    padded.enter([[9, 8, 7]], 5)  # in a slot that the padding has written to
    torch.testing.assert_close(
        padded.step(torch.tensor([1] * 6), torch.tensor([*(places + 1).tolist(), 3]), int(places.max()) + 2)[5],
        output_lock(llama(VOCABULARY, key_value_heads=2).double(), [9, 8, 7, 1]),
        rtol=1e-9,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("rows_", "longest", "wanted"),
    [
        (1, 1, (8, 256)),
        (3, 257, (8, 512)),
        (8, 256, (8, 256)),
        (9, 256, (64, 256)),
        (64, 1, (64, 256)),
        (65, 1, (250, 256)),
        (200, 900, (250, 1000)),
    ],
)
def test_steps_are_rounded_up_but_not_beyond_what_there_is(rows_: int, longest: int, wanted: tuple[int, int]) -> None:
    assert rounded(rows_, longest, 250, 1000) == wanted


def test_steps_are_rounded_up_to_all_slots_where_these_are_few() -> None:
    assert [rounded(3, 1, capacity, 1000)[0] for capacity in (3, 8, 9)] == [3, 8, 8]
    assert rounded(20, 1, 40, 1000)[0] == 40


def test_the_first_cause_of_a_capture_that_failed_is_found() -> None:
    try:
        try:
            raise ValueError("the cause")
        finally:
            raise RuntimeError("what the end of the capture says")
    except RuntimeError as error:
        assert str(first_cause(error)) == "the cause"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are captured on a GPU alone")
def test_captured_steps_have_the_logits_of_those_that_are_not() -> None:
    model = llama(VOCABULARY, key_value_heads=2).cuda()
    with torch.inference_mode():
        assert use_slots(model, PROBE)
        slots, texts = Slots(model, 8, 300), rows(5)
        slots.enter(texts, 0)
        for step in range(4):
            tokens = torch.arange(3 + step, 8 + step).cuda()
            places = torch.tensor([len(row) + step for row in texts]).cuda()
            found = slots.step(tokens, places, int(places.max()) + 1).clone()
            wanted = slots.pass_through(tokens, places, int(places.max()) + 1)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert slots._graphs is not None and slots._graphs._works


@pytest.mark.parametrize("make", [lambda: gemma2(VOCABULARY), lambda: mistral(VOCABULARY, window=4)])
def test_a_model_whose_attention_is_of_another_kind_stays_as_it_was(make: Callable[[], PreTrainedModel]) -> None:
    model, plain = make().double(), make().double()
    before = model.config._attn_implementation
    assert not use_slots(model, PROBE)
    assert model.config._attn_implementation == before != NAME
    torch.testing.assert_close(output_lock(model, PROBE), output_lock(plain, PROBE))


def test_a_window_that_no_row_reaches_beyond_is_none() -> None:
    assert use_slots(mistral(VOCABULARY, window=64), PROBE)
