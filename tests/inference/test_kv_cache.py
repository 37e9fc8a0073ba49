"""Rows in the cache have the logits that the model's own forward pass gives to each of them alone."""

import random
from collections.abc import Callable
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel

from howto.inference import cuda_graphs
from howto.inference.cuda_graphs import DecodeGraphs, graph_size
from howto.inference.kv_cache import ATTENTION, KVCache, one_row_cache, use_kv_cache
from tests.support.architectures import architecture
from tests.support.models import gemma2, llama, mistral

VOCABULARY = 50
PROBE = list(range(3, 13))


def random_rows(count: int, seed: int = 0) -> list[list[int]]:
    """Rows of 1 to 20 tokens."""
    chance = random.Random(seed)
    return [[chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 20))] for _ in range(count)]


def models(make: Callable[[], PreTrainedModel]) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A model with its own attention, and the same one with that of the cache."""
    plain, cached = (make().double() for _ in range(2))
    assert use_kv_cache(cached, PROBE)
    return plain, cached


def llama_2() -> PreTrainedModel:
    return llama(VOCABULARY, key_value_heads=2)


@torch.inference_mode()
def last_logits(model: PreTrainedModel, row: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "limit"),
    [
        *((partial(llama, VOCABULARY, key_value_heads=heads), 1e-9) for heads in (4, 2, 1)),
        (partial(mistral, VOCABULARY, window=4), 1e-9),
        (partial(gemma2, VOCABULARY), 1e-5),  # its own softmax is in float32
    ],
    ids=["4 key heads", "2 key heads", "1 key head", "a window of 4", "capped scores"],
)
def test_rows_that_start_end_and_move_have_their_own_logits(make: Callable[[], PreTrainedModel], limit: float) -> None:
    plain, model = models(make)
    cache, rows, chance = KVCache(model, 6, 30), random_rows(6), random.Random(1)
    found = torch.cat([cache.prefill(rows[:2], 0), cache.prefill(rows[2:], 2)])
    for _ in range(8):
        for row, logits in zip(rows, found, strict=True):
            torch.testing.assert_close(logits, last_logits(plain, row), rtol=limit, atol=limit)
        if len(rows) > 3:  # one ends, and the last one takes its slot
            ended = chance.randrange(len(rows) - 1)
            cache.move(len(rows) - 1, ended)
            rows[ended] = rows.pop()
        for row in rows:
            row.append(chance.randrange(VOCABULARY))
        positions = torch.tensor([len(row) - 1 for row in rows])
        found = cache.decode(torch.tensor([row[-1] for row in rows]), positions, int(positions.max()) + 1)


def test_a_padded_step_has_the_same_logits_and_leaves_free_slots_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("graph_pool_handle", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(
        cuda_graphs, "_capture", lambda step, _t, _p, reach, _pool: lambda *inputs: step(*inputs, reach)
    )
    plain, model = models(llama_2)
    rows, cache, padded = random_rows(5), KVCache(model, 8, 40), KVCache(model, 8, 40)
    cache.prefill(rows, 0), padded.prefill(rows, 0)
    graphs = DecodeGraphs(padded.decode_eagerly, 8, 40)
    tokens, positions = torch.tensor([3, 4, 5, 6, 7]), torch.tensor([len(row) for row in rows])
    reach = int(positions.max()) + 1
    found, expected = graphs.decode(tokens, positions, reach), cache.decode(tokens, positions, reach)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    padded.prefill([[9, 8, 7]], 5)  # in a slot that the padding has written to
    found = graphs.decode(torch.tensor([1] * 6), torch.tensor([*(positions + 1).tolist(), 3]), reach + 1)[5]
    torch.testing.assert_close(found, last_logits(plain, [9, 8, 7, 1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("rows", "reach", "expected"),
    [(1, 1, (8, 256)), (8, 257, (8, 512)), (9, 256, (64, 256)), (64, 1, (64, 256)), (65, 900, (250, 1000))],
)
def test_a_step_is_rounded_up_within_the_cache(rows: int, reach: int, expected: tuple[int, int]) -> None:
    assert graph_size(rows, reach, capacity=250, length=1000) == expected
    assert graph_size(3, reach, capacity=5, length=1000)[0] == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_captured_steps_have_the_logits_of_eager_ones() -> None:
    model, rows = llama(VOCABULARY, key_value_heads=2).cuda(), random_rows(5)
    with torch.inference_mode():
        assert use_kv_cache(model, PROBE)
        cache = KVCache(model, 8, 300)
        cache.prefill(rows, 0)
        for step in range(4):
            tokens = torch.arange(3 + step, 8 + step).cuda()
            positions = torch.tensor([len(row) + step for row in rows]).cuda()
            found = cache.decode(tokens, positions, int(positions.max()) + 1).clone()
            expected = cache.decode_eagerly(tokens, positions, int(positions.max()) + 1)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert cache._graphs is not None and cache._graphs.captured.works


@torch.inference_mode()
@pytest.mark.parametrize("name", ["gpt_oss", "bloom", "stablelm"])
def test_a_model_with_another_attention_stays_unchanged(name: str) -> None:
    model, plain = architecture(name), architecture(name)
    assert not use_kv_cache(model, PROBE)
    assert model.config._attn_implementation == plain.config._attn_implementation != ATTENTION
    torch.testing.assert_close(last_logits(model, PROBE), last_logits(plain, PROBE))


@torch.inference_mode()
@pytest.mark.parametrize(("name", "keeps"), [("bloom", True), ("mamba", False)])
def test_one_row_is_exact_with_the_models_own_cache_or_without_any(name: str, *, keeps: bool) -> None:
    model, row = architecture(name), list(PROBE)
    cache = one_row_cache(model, PROBE)
    assert cache._keeps_nothing is not keeps
    logits = cache.prefill([row], 0)
    for token in (5, 6, 7):
        torch.testing.assert_close(logits[0], last_logits(model, row), rtol=1e-4, atol=1e-4)
        row.append(token)
        logits = cache.decode(torch.tensor([token]), torch.tensor([len(row) - 1]), len(row))
    torch.testing.assert_close(logits[0], last_logits(model, row), rtol=1e-4, atol=1e-4)
