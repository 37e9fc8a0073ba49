"""Answers are those of the model's own `generate`, row by row, whichever rows share the batch."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList, NoRepeatNGramLogitsProcessor

from howto.core.schema import Row, read_rows
from howto.inference.decoder import Answer, Decoder, Request
from howto.inference.generator import Generator
from howto.inference.kv_cache import KVCache, OneRowCache, use_kv_cache
from howto.modeling.adapters.adapter import load_adapter
from howto.modeling.chat import Chat
from howto.modeling.collate import Example
from howto.modeling.loading import load_base, load_chat
from tests.inference.test_sampling import decoding_params
from tests.support.models import gemma2, llama

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rows(finished: Path) -> list[Row]:
    return read_rows(finished / "data/prepared/train.jsonl", Row)[::5]


@pytest.fixture(scope="module")
def chat(finished: Path) -> Chat:
    return load_chat(finished / "models/base")


def generator(folder: Path, batch_size: int, **decoding: Any) -> Generator:
    base, adapter = folder / "models/base", folder / "models/adapter"
    params = decoding_params(**{"max_new_tokens": 24, **decoding})
    return Generator.load(base, adapter, params, batch_size=batch_size, precision="float32", device=CPU)


def answers(of: Generator, rows: list[Row]) -> list[Answer]:
    """The answers in the order of the rows."""
    requests = [Request(of.encode(row)) for row in rows]
    found = {answer.request: answer for answer in of.generate(requests)}
    return [found[request] for request in requests]


def texts(of: Generator, rows: list[Row]) -> list[str]:
    return [answer.text for answer in answers(of, rows)]


def random_requests(count: int, vocabulary: int) -> list[Request]:
    chance = random.Random(count)
    return [Request(Example("", [chance.randrange(3, vocabulary) for _ in range(3 + n)], [])) for n in range(count)]


def generated(model: Any, chat: Chat, prompt: list[int], **settings: Any) -> list[int]:
    """The new tokens, without the end of sequence, of transformers' `generate` for one prompt.

    Its rule against repeated n-grams is applied to the answer alone, which may quote the prompt.
    """
    rules, ends = LogitsProcessorList(), sorted(chat.ends)
    if size := settings.pop("no_repeat_ngram_size", None):
        rule = NoRepeatNGramLogitsProcessor(size)
        rules.append(lambda ids, scores: rule(ids[:, len(prompt) :], scores))
    output = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        generation_config=GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=0, **settings),
        logits_processor=rules,
    )
    new: list[int] = output[0, len(prompt) :].tolist()
    return new[:-1] if new[-1] in ends else new


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}], ids=str)
def test_greedy_answers_are_those_of_generate_with_the_adapter_unmerged(
    finished: Path, rows: list[Row], chat: Chat, settings: dict[str, Any]
) -> None:
    base = finished / "models/base"
    peft = load_adapter(load_base(base, "float32", CPU), finished / "models/adapter", base)
    found = answers(generator(finished, 7, **settings), rows)
    if settings:  # they change something
        assert [answer.text for answer in found] != texts(generator(finished, 7), rows)
    else:
        assert {answer.stop for answer in found} == {"eos", "length"}
    for row, answer in zip(rows, found, strict=True):
        prompt = chat.prompt_ids(row)
        ids = generated(peft, chat, prompt, max_new_tokens=24, **settings)
        assert answer.text == chat.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert (answer.new_tokens, answer.stop) == (len(ids), "length" if len(ids) == 24 else "eos")


def test_every_token_that_the_models_files_list_as_an_end_ends_an_answer(workplace: Path, rows: list[Row]) -> None:
    base = workplace / "models/base"
    first = load_chat(base).tokenizer(" Then", add_special_tokens=False).input_ids[-1]  # the trained answers have it
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, first]}), encoding="utf-8")
    chat, model = load_chat(base), load_base(base, "float32", CPU)
    of = Generator.load(base, None, decoding_params(max_new_tokens=24), batch_size=7, precision="float32", device=CPU)
    found = answers(of, rows)
    for row, answer in zip(rows, found, strict=True):
        ids = generated(model, chat, chat.prompt_ids(row), max_new_tokens=24)
        assert answer.text == chat.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert (answer.new_tokens, answer.stop) == (len(ids), "length" if len(ids) == 24 else "eos")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}), encoding="utf-8")
    of = Generator.load(base, None, decoding_params(max_new_tokens=24), batch_size=7, precision="float32", device=CPU)
    assert texts(of, rows) != [answer.text for answer in found]  # without that end


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_does_not_depend_on_the_rows_that_share_its_batch(
    finished: Path, rows: list[Row], temperature: float
) -> None:
    one_by_one = dict(zip(rows, texts(generator(finished, 1, temperature=temperature), rows), strict=True))
    assert len(set(one_by_one.values())) > 5
    for size in (3, 64):
        mixed = random.Random(size).sample(rows, len(rows))
        found = texts(generator(finished, size, temperature=temperature), mixed)
        assert dict(zip(mixed, found, strict=True)) == one_by_one


def test_ties_are_resolved_by_the_row_itself(chat: Chat) -> None:
    model = llama(len(chat.tokenizer), seed=3)
    # The head has each token twice but for the last bits, so every choice is a tie.
    half = len(chat.tokenizer) // 2
    noise = 1 + 1e-7 * torch.randn(half, 32, generator=torch.Generator().manual_seed(0))
    model.lm_head.weight[half : 2 * half] = model.lm_head.weight[:half] * noise
    assert use_kv_cache(model, [5, 6, 7, 8])
    requests = random_requests(12, half)
    found = []
    for size in (1, 3, 12):
        decoder = Decoder(model, KVCache(model, size, 30), chat, decoding_params(max_new_tokens=12))
        by_request = {answer.request: answer.text for answer in decoder.decode(requests)}
        found.append([by_request[request] for request in requests])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 6


class RecordedCache(KVCache):
    """Records the order in which steps are launched and their tokens read, and the tokens of each answer."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.events: list[str] = []
        self.seen: dict[Request, list[list[int]]] = {}

    def prefill(self, prompts: Sequence[list[int]], first: int) -> torch.Tensor:
        self.events.append("launch")
        return super().prefill(prompts, first)

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, reach: int) -> torch.Tensor:
        assert int(positions.max()) < reach < self.length
        self.events.append("launch")
        return super().decode(tokens, positions, reach)

    def on_token(self, request: Request, tokens: list[int]) -> None:
        self.seen.setdefault(request, []).append(list(tokens))
        if self.events[-1] != "read":
            self.events.append("read")


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 1.0}, {"repetition_penalty": 1.3}, {"stop": ["s. Th", " box"]}, {"max_new_tokens": 1}],
    ids=str,
)
def test_a_decoder_that_runs_ahead_gives_the_same_answers(
    finished: Path, rows: list[Row], chat: Chat, settings: dict[str, Any], device: str
) -> None:
    model = load_base(finished / "models/base", "float32", torch.device(device)).requires_grad_(False)
    prompts = [chat.prompt_ids(row) for row in rows]
    assert use_kv_cache(model, prompts[0])
    params = decoding_params(**{"max_new_tokens": 24, **settings})
    requests = [Request(Example(row.id, ids, []), seed=5) for row, ids in zip(rows, prompts, strict=True)]
    found = []
    for ahead in (False, True):
        cache = RecordedCache(model, 5, max(map(len, prompts)) + params.max_new_tokens)  # rows start at several times
        decoder = Decoder(model, cache, chat, params, run_ahead=ahead)
        for _ in range(2):  # the second time in the same cache
            by_request = {answer.request: answer for answer in decoder.decode(requests, cache.on_token)}
        for request, answer in by_request.items():
            assert [len(ids) for ids in cache.seen[request]] == list(range(1, answer.new_tokens + 1)) * 2
        found.append(([by_request[request] for request in requests], cache.seen))
        if params.max_new_tokens > 1:
            assert cache.events[:3] == ["launch", *(["launch", "read"] if ahead else ["read", "launch"])]
    assert found[0] == found[1]
    stops = {answer.stop for answer in found[0][0]}
    expected = {"length"} if params.max_new_tokens == 1 else {"eos", "length", *(["stop"] * ("stop" in settings))}
    assert stops == expected
    assert not any(string in answer.text for answer in found[0][0] for string in params.stop)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_model_with_another_attention_is_answered_row_by_row_as_by_its_generate(chat: Chat, *, ahead: bool) -> None:
    model = gemma2(len(chat.tokenizer))
    decoder = Decoder(model, OneRowCache(model), chat, decoding_params(max_new_tokens=9), run_ahead=ahead)
    for answer in decoder.decode(random_requests(4, 500)):
        ids = generated(model, chat, answer.request.row.prompt, max_new_tokens=9)
        assert answer.text == chat.tokenizer.decode(ids, skip_special_tokens=True).strip()
