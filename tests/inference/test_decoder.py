"""Answers are those of the model's own `generate`, row by row, whatever shares the batch."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedTokenizerBase,
)

from howto.core.errors import UserError
from howto.core.schema import Prediction, Row, read_rows
from howto.inference.config import Infer, ProfileInfer
from howto.inference.decoder import SCORED, Answer, Decoder, Request, _parts
from howto.inference.generator import Answering
from howto.inference.kv_cache import Flight, OneRow, Slots, use_slots
from howto.modeling.collate import Example
from howto.modeling.loading import load_adapter, load_base, load_tokenizer
from howto.modeling.prompt import completion_ids, prompt_ids
from tests.conftest import run_stage
from tests.inference.test_sampling import infer
from tests.support.models import gemma2, llama

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(finished: Path) -> list[Row]:
    return read_rows(finished / "data/prepared/train.jsonl", Row)[:30]


def answering(folder: Path, decoding: Infer, batch_size: int, adapter: bool = True) -> Answering:
    return Answering(
        folder / "models/base",
        folder / "models/adapter" if adapter else None,
        decoding,
        batch_size=batch_size,
        precision="float32",
        device=CPU,
    )


def texts(engine: Answering, rows: list[Row], seed: int = 0) -> list[Answer]:
    wanted = [(number, seed) for number in range(len(rows))]
    found = {number: answer for number, _, answer in engine.answers(rows, engine.fit(rows), wanted)}
    return [found[number] for number in range(len(rows))]


class NoRepeatInTheAnswer(LogitsProcessor):  # type: ignore[misc]
    """transformers' rule against repeated runs of tokens, on the answer alone: the prompt may be quoted."""

    def __init__(self, size: int, prompt_tokens: int) -> None:
        self._rule, self._prompt_tokens = NoRepeatNGramLogitsProcessor(size), prompt_tokens

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        ruled: torch.FloatTensor = self._rule(input_ids[:, self._prompt_tokens :], scores)
        return ruled


def generated(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: list[int], **settings: Any) -> list[int]:
    """The new tokens, without the end of sequence, that the model's own generation gives to a prompt alone."""
    size = settings.pop("no_repeat_ngram_size", None)
    config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id, **settings
    )
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        logits_processor=LogitsProcessorList([NoRepeatInTheAnswer(size, len(prompt))] if size else []),
    )
    new: list[int] = output[0, len(prompt) :].tolist()
    return new[:-1] if new[-1] == tokenizer.eos_token_id else new


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}], ids=str)
def test_greedy_answers_are_those_of_generate_row_by_row_with_the_adapter_unmerged(
    finished: Path, rows: list[Row], settings: dict[str, Any]
) -> None:
    base = finished / "models/base"
    tokenizer = load_tokenizer(base)
    peft = load_adapter(load_base(base, "float32", CPU), finished / "models/adapter", base)
    engine = answering(finished, infer(max_new_tokens=24, **settings), batch_size=7)
    answers = texts(engine, rows)
    if settings:  # they change something
        assert answers != texts(answering(finished, infer(max_new_tokens=24), batch_size=7), rows)
    else:
        assert {answer.stop for answer in answers} == {"eos", "length"}
    for row, answer in zip(rows, answers, strict=True):
        prompt = prompt_ids(tokenizer, row.instruction, row.input)
        ids = generated(peft, tokenizer, prompt, max_new_tokens=24, **settings)
        assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert (answer.new_tokens, answer.prompt_tokens) == (len(ids), len(prompt))
        assert answer.stop == ("length" if len(ids) == 24 else "eos")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_the_rows_that_share_its_batch(
    finished: Path, rows: list[Row], temperature: float
) -> None:
    decoding = infer(max_new_tokens=24, temperature=temperature)
    alone = texts(answering(finished, decoding, 1), rows)
    assert len({answer.text for answer in alone}) > 5
    for size in (2, 7, 64):
        mixed = list(rows)
        random.Random(size).shuffle(mixed)
        found = dict(zip([row.id for row in mixed], texts(answering(finished, decoding, size), mixed), strict=True))
        assert [found[row.id].text for row in rows] == [answer.text for answer in alone]


def decoder(model: Any, tokenizer: Any, decoding: Infer, size: int, length: int) -> Decoder:
    model = model.eval()
    return Decoder(model, Slots(model, size, length), tokenizer, decoding)


def test_tokens_that_are_all_but_equally_likely_are_chosen_by_the_row_alone(finished: Path) -> None:
    tokenizer = load_tokenizer(finished / "models/base")
    vocabulary = len(tokenizer)
    model = llama(vocabulary, seed=3)
    # The head has each token twice but for the last bits, so every choice is a close one.
    half = vocabulary // 2
    noise = 1 + 1e-7 * torch.randn(half, 32, generator=torch.Generator().manual_seed(0))
    model.lm_head.weight[half : 2 * half] = model.lm_head.weight[:half] * noise
    assert use_slots(model, [5, 6, 7, 8])
    prompts = [[random.Random(n).randrange(3, half) for _ in range(3 + n % 5)] for n in range(12)]
    found = []
    for size in (1, 3, 12):
        requests = [Request(number, prompt) for number, prompt in enumerate(prompts)]
        answers = decoder(model, tokenizer, infer(max_new_tokens=12), size, 30).answers(requests)
        found.append({answer.index: answer.text for answer in answers})
    assert found[0] == found[1] == found[2]
    assert len(set(found[0].values())) > 6


class Recorded:
    """A flight, and in which order its steps were launched and their tokens read."""

    def __init__(self, flight: Flight, length: int) -> None:
        self._flight, self._length = flight, length
        self.capacity = flight.capacity
        self.events: list[str] = []
        self.watched: dict[int, list[list[int]]] = {}

    def enter(self, rows: Sequence[list[int]], first: int) -> torch.Tensor:
        self.events.append("launch")
        return self._flight.enter(rows, first)

    def step(self, tokens: torch.Tensor, places: torch.Tensor, longest: int) -> torch.Tensor:
        assert int(places.max()) < longest <= self._length  # within the cache
        self.events.append("launch")
        return self._flight.step(tokens, places, longest)

    def move(self, source: int, target: int) -> None:
        self._flight.move(source, target)

    def logits(self, rows: Sequence[Example]) -> torch.Tensor:
        return self._flight.logits(rows)

    def watch(self, index: int, tokens: list[int]) -> None:
        self.watched.setdefault(index, []).append(list(tokens))
        if self.events[-1:] != ["read"]:
            self.events.append("read")


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 1.0}, {"repetition_penalty": 1.3}, {"stop": ["s. Th", " box"]}, {"max_new_tokens": 1}],
    ids=str,
)
def test_a_decoder_that_runs_ahead_gives_the_same_answers(
    finished: Path, rows: list[Row], settings: dict[str, Any], device: str
) -> None:
    base = finished / "models/base"
    tokenizer = load_tokenizer(base)
    model = load_base(base, "float32", torch.device(device)).requires_grad_(False)
    assert use_slots(model, prompt_ids(tokenizer, "Do.", "How?"))
    decoding = infer(**{"max_new_tokens": 24, **settings})
    prompts = [prompt_ids(tokenizer, row.instruction, row.input) for row in rows]
    requests = [Request(n, prompt, rows[n].id, seed=5) for n, prompt in enumerate(prompts)]
    longest = max(map(len, prompts)) + decoding.max_new_tokens
    found = []
    for ahead in (False, True):
        flight = Recorded(Slots(model, 7, longest), longest - 1)  # rows enter at different times
        decoder = Decoder(model, flight, tokenizer, decoding, runs_ahead=ahead)
        for _ in range(2):  # the second time in the same cache
            answers = sorted(decoder.answers(requests, flight.watch), key=lambda answer: answer.index)
        found.append((answers, flight.watched))
        if decoding.max_new_tokens > 1:
            assert flight.events[:3] == ["launch", *(["launch", "read"] if ahead else ["read", "launch"])]
    assert found[0] == found[1]
    stops = {answer.stop for answer in found[0][0]}
    assert stops == (
        {"length"} if decoding.max_new_tokens == 1 else {"eos", "length", *(["stop"] * ("stop" in settings))}
    )


def test_a_decoder_that_runs_ahead_answers_row_by_row_too(finished: Path) -> None:
    tokenizer = load_tokenizer(finished / "models/base")
    model = gemma2(len(tokenizer))
    requests = [Request(n, [random.Random(n).randrange(3, 500) for _ in range(4 + n)]) for n in range(4)]
    found = [
        list(Decoder(model, OneRow(model), tokenizer, infer(max_new_tokens=9), runs_ahead=ahead).answers(requests))
        for ahead in (False, True)
    ]
    assert found[0] == found[1]


def test_what_the_host_decides_between_two_steps_is_not_run_ahead_of(finished: Path) -> None:
    tokenizer = load_tokenizer(finished / "models/base")
    model = llama(len(tokenizer))
    with pytest.raises(ValueError, match="no_repeat_ngram_size"):
        Decoder(model, OneRow(model), tokenizer, infer(no_repeat_ngram_size=2), runs_ahead=True)


def test_a_model_of_another_kind_is_answered_row_by_row_as_by_its_own_generate(finished: Path) -> None:
    tokenizer = load_tokenizer(finished / "models/base")
    model = gemma2(len(tokenizer))
    assert not use_slots(model, [5, 6, 7, 8])
    prompts = [[random.Random(n).randrange(3, 500) for _ in range(4 + n)] for n in range(4)]
    engine = Decoder(model, OneRow(model), tokenizer, infer(max_new_tokens=9))
    answers = {answer.index: answer for answer in engine.answers([Request(n, p) for n, p in enumerate(prompts)])}
    for number, prompt in enumerate(prompts):
        ids = generated(model, tokenizer, prompt, max_new_tokens=9)
        assert answers[number].text == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_an_answer_ends_where_params_say(finished: Path, rows: list[Row]) -> None:
    whole = texts(answering(finished, infer(max_new_tokens=24), 8), rows)
    long = next(number for number, answer in enumerate(whole) if len(answer.text.split()) > 4)
    word = whole[long].text.split()[3]
    cut = texts(answering(finished, infer(max_new_tokens=24, stop=[word, "no such text"]), 8), rows)[long]
    assert cut.stop == "stop" and cut.text == whole[long].text.split(word)[0].strip()
    assert cut.new_tokens < whole[long].new_tokens
    one = texts(answering(finished, infer(max_new_tokens=1), 8), rows)
    assert {answer.new_tokens for answer in one} <= {0, 1} and all(a.stop == "length" or not a.text for a in one)


def test_seeds_give_answers_of_their_own_and_the_same_again(finished: Path, rows: list[Row]) -> None:
    engine = answering(finished, infer(max_new_tokens=16, temperature=1.0, seeds=[1, 2]), 8)
    first, second, again = (texts(engine, rows, seed) for seed in (1, 2, 1))
    assert first == again
    assert sum(a.text != b.text for a, b in zip(first, second, strict=True)) > 10


def test_answers_are_told_token_by_token(finished: Path, rows: list[Row]) -> None:
    engine = answering(finished, infer(max_new_tokens=16), 4)
    seen: dict[int, list[list[int]]] = {}
    wanted = [(number, 0) for number in range(6)]
    answers = engine.answers(
        rows, engine.fit(rows), wanted, watch=lambda index, ids: seen.setdefault(index, []).append(list(ids))
    )
    for number, _, answer in answers:
        told = seen[number]
        assert [len(ids) for ids in told] == list(range(1, answer.new_tokens + 1))
        assert engine.tokenizer.decode(told[-1], skip_special_tokens=True).strip() == answer.text


@pytest.mark.parametrize("many", [True, False])
def test_log_probabilities_of_references_are_those_of_the_models_own_forward_pass(
    finished: Path, rows: list[Row], many: bool
) -> None:
    engine = answering(finished, infer(max_new_tokens=8), 5, adapter=False)
    if not many:
        engine._model.set_attn_implementation("sdpa")
        engine._many = False
    plain = AutoModelForCausalLM.from_pretrained(finished / "models/base").eval()
    found = engine.references(rows, engine.fit(rows))
    for row, (tokens, value) in zip(rows, found, strict=True):
        prompt = prompt_ids(engine.tokenizer, row.instruction, row.input)
        completion = completion_ids(engine.tokenizer, row.instruction, row.input, row.output)
        with torch.inference_mode():
            logits = plain(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        log_probabilities = logits.double().log_softmax(dim=1)
        wanted = math.fsum(log_probabilities[place, token].item() for place, token in enumerate(completion))
        assert tokens == len(completion)
        assert value == pytest.approx(wanted / tokens, abs=2e-5)


def test_a_context_that_is_too_long_is_shortened_and_an_intent_that_is_too_long_gets_an_empty_answer(
    finished: Path, rows: list[Row]
) -> None:
    row = next(row for row in rows if row.context)
    intent = row.model_copy(update={"input": row.intent, "context": ""})
    engine = answering(finished, infer(max_new_tokens=4), 2)
    bare = len(prompt_ids(engine.tokenizer, row.instruction, row.intent))
    engine = answering(finished, infer(max_new_tokens=4, max_prompt_tokens=bare), 2)
    assert engine.fit([row, intent]) == [row.intent, row.intent]
    engine = answering(finished, infer(max_new_tokens=4, max_prompt_tokens=bare - 1), 2)
    assert engine.fit([row]) == [None]
    ((_, _, answer),) = engine.answers([row], [None], [(0, 0)])
    assert (answer.text, answer.stop, answer.new_tokens) == ("", "too_long", 0)
    assert engine.references([row], [None])[0][1] is None


def test_every_test_row_has_a_prediction_by_both_models_in_the_rows_order(finished: Path) -> None:
    ids = [row.id for row in read_rows(finished / "data/prepared/test.jsonl", Row)]
    found = {}
    for model in ("base", "adapter"):
        predictions = read_rows(finished / f"data/predictions/{model}.jsonl", Prediction)
        assert [prediction.id for prediction in predictions] == ids
        assert all(p.new_tokens <= 48 and (p.stop == "eos" or p.new_tokens == 48) for p in predictions)
        assert all(p.reference_log_probability is not None and p.reference_log_probability < 0 for p in predictions)
        found[model] = [prediction.text for prediction in predictions]
    assert found["base"] != found["adapter"]  # the adapter is active


def test_samples_of_several_seeds_stand_row_by_row(workplace: Path) -> None:
    path = workplace / "params.yaml"
    text = path.read_text(encoding="utf-8")
    new = text.replace("  temperature: 0.0 ", "  temperature: 1.0 ").replace("  seeds: [0] ", "  seeds: [10, 20] ")
    path.write_text(new, encoding="utf-8")
    for model in ("base", "adapter"):
        done = run_stage(workplace, "stages.infer", "--stage", model)
        assert done.returncode == 0, done.stderr
    rows = read_rows(workplace / "data/prepared/test.jsonl", Row)
    predictions = read_rows(workplace / "data/predictions/adapter.jsonl", Prediction)
    assert [(p.id, p.seed) for p in predictions] == [(row.id, seed) for row in rows for seed in (10, 20)]
    done = run_stage(workplace, "stages.evaluate")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((workplace / "metrics/evaluation.json").read_text(encoding="utf-8"))
    assert metrics["seeds"] == 2 and metrics["adapter"]["rougeL_seed_sd"] > 0


def test_a_profile_decodes_otherwise_where_it_says_so() -> None:
    shared = infer(max_new_tokens=8, top_k=5)
    profile = ProfileInfer(batch_size=2, temperature=1.0, seeds=[1, 2])
    decoding = profile.decoding(shared)
    assert (decoding.temperature, decoding.seeds, decoding.top_k, decoding.max_new_tokens) == (1.0, [1, 2], 5, 8)
    with pytest.raises(UserError, match="greedy, and gives the same answer"):
        ProfileInfer(batch_size=2, seeds=[1, 2]).decoding(shared)


def test_references_of_long_prompts_are_scored_a_bounded_number_of_tokens_at_once() -> None:
    lengths = [3, 1500, 9000, 20_000, 1, 16_000, 300, 70]
    examples = [Example(str(n), [1] * length, [2] * 5) for n, length in enumerate(lengths)]
    parts = list(_parts(examples, most=12))
    assert [example for part in parts for example in part] == examples
    assert all(len(part) == 1 or sum(map(len, part)) <= SCORED for part in parts)
    assert [len(part) for part in parts] == [2, 1, 1, 2, 2]
