"""Rows are encoded, scored and answered, and the stage writes a prediction for each of them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from howto.core.errors import UserError
from howto.core.schema import Prediction, Row, read_rows
from howto.inference.config import ProfileInfer
from howto.inference.decoder import Request
from howto.inference.generator import Generator
from howto.inference.kv_cache import OneRowCache
from howto.inference.references import MAX_TOKENS, _batches
from howto.modeling.collate import Example
from howto.modeling.distributed.process_group import ProcessGroup
from stages.infer import answer_rows
from tests.inference.test_sampling import decoding_params
from tests.support.architectures import write_architecture

ALONE = ProcessGroup(torch.device("cpu"))


@pytest.fixture(scope="module")
def rows(finished: Path) -> list[Row]:
    return read_rows(finished / "data/prepared/train.jsonl", Row)[:12]


def generator(folder: Path, **decoding: Any) -> Generator:
    params, device = decoding_params(max_new_tokens=8, **decoding), torch.device("cpu")
    return Generator.load(folder / "models/base", None, params, batch_size=5, precision="float32", device=device)


@pytest.mark.parametrize("batched", [True, False])
def test_log_probabilities_of_references_are_the_models_own(finished: Path, rows: list[Row], *, batched: bool) -> None:
    of = generator(finished)
    if not batched:
        of._model.set_attn_implementation("sdpa")
        of._cache = OneRowCache(of._model)
    plain = AutoModelForCausalLM.from_pretrained(finished / "models/base").eval()
    encoded = [of.encode(row) for row in rows]
    found = of.reference_log_probabilities(encoded, ALONE)
    for row, one in zip(rows, encoded, strict=True):
        prompt, completion = of.chat.prompt_ids(row), of.chat.completion_ids(row)
        assert (one.prompt, one.completion, one.is_shortened) == (prompt, completion, False)
        with torch.inference_mode():
            logits = plain(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        log_probabilities = logits.double().log_softmax(dim=1)
        expected = math.fsum(log_probabilities[place, token].item() for place, token in enumerate(completion))
        assert found[row.id] == pytest.approx(expected / len(completion), abs=2e-5)


def test_a_long_context_is_shortened_and_a_long_intent_gets_an_empty_answer(finished: Path, rows: list[Row]) -> None:
    row = next(row for row in rows if row.context)
    of = generator(finished)
    intent = of.chat.prompt_ids(row.model_copy(update={"input": row.intent, "context": ""}))
    encoded = generator(finished, max_prompt_tokens=len(intent)).encode(row)
    assert encoded.prompt == intent and encoded.is_shortened
    of = generator(finished, max_prompt_tokens=len(intent) - 1)
    encoded = of.encode(row)
    assert encoded.prompt == [] and not encoded.is_shortened
    (answer,) = of.generate([Request(encoded)])
    assert (answer.text, answer.stop, answer.new_tokens) == ("", "too_long", 0)
    assert of.reference_log_probabilities([encoded], ALONE) == {}


def test_a_window_that_the_attention_is_not_told_of_is_noticed_before_a_row_exceeds_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In Qwen2-MoE it is in the mask alone, which the batched cache does not use."""
    window = {"use_sliding_window": True, "sliding_window": 130, "layer_types": ["sliding_attention"] * 2}
    write_architecture(tmp_path / "models/base", "qwen2_moe", **window)
    of, plain = generator(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path / "models/base").eval()
    short, long = ([Example(str(size), list(range(3, 3 + size)), [5, 6, 7])] for size in (80, 90))
    long = [Example("long", [*long[0].prompt, *long[0].prompt], [5, 6, 7])]
    for rows, batched in ((short, True), (long, False)):
        found = of.reference_log_probabilities(rows, ALONE)
        (answer,) = of.generate([Request(rows[0])])
        ids = torch.tensor([rows[0].prompt])
        with torch.inference_mode():
            logits = plain(input_ids=torch.tensor([[*rows[0].prompt, 5, 6, 7]])).logits[0, -4:-1].log_softmax(1)
            new = plain.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert found[rows[0].id] == pytest.approx(logits[range(3), [5, 6, 7]].mean().item(), abs=1e-5)
        assert answer.text == of.chat.tokenizer.decode(new, skip_special_tokens=True).strip()
        assert ("one row at a time" in capsys.readouterr().err) is not batched


def test_references_are_scored_a_bounded_number_of_tokens_at_once() -> None:
    lengths = [3, 1500, 9000, 20_000, 1, 16_000, 300, 70]
    examples = [Example(str(n), [1] * length, [2] * 5) for n, length in enumerate(lengths)]
    batches = list(_batches(examples, max_completion_tokens=12))
    assert [example for batch in batches for example in batch] == examples
    assert all(len(batch) == 1 or sum(map(len, batch)) <= MAX_TOKENS for batch in batches)
    assert [len(batch) for batch in batches] == [2, 1, 1, 2, 2]


def test_every_test_row_has_a_prediction_by_both_models_in_the_order_of_the_rows(finished: Path) -> None:
    ids = [row.id for row in read_rows(finished / "data/prepared/test.jsonl", Row)]
    found = {}
    for model in ("base", "adapter"):
        predictions = read_rows(finished / f"data/predictions/{model}.jsonl", Prediction)
        assert [prediction.id for prediction in predictions] == ids
        assert all(one.new_tokens <= 48 and (one.stop == "eos" or one.new_tokens == 48) for one in predictions)
        assert all(one.reference_log_probability is not None for one in predictions)
        found[model] = predictions
    prompts = [[one.prompt_tokens for one in found[model]] for model in found]
    assert prompts[0] == prompts[1]
    assert [one.text for one in found["base"]] != [one.text for one in found["adapter"]]  # the adapter is active


def test_each_seed_has_a_prediction_and_any_log_resumes(finished: Path, rows: list[Row], tmp_path: Path) -> None:
    of, seeds = generator(finished, temperature=1.0, seeds=[10, 20]), [10, 20]
    predictions = answer_rows(of, rows, seeds, tmp_path, ALONE)
    assert [(one.id, one.seed) for one in predictions] == [(row.id, seed) for row in rows for seed in seeds]
    assert sum(a.text != b.text for a, b in zip(predictions[::2], predictions[1::2], strict=True)) > 3
    log = tmp_path / "answers.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:5]) + lines[5][:-3])  # cut by a kill
    (tmp_path / "answers-3.jsonl").write_bytes(b"".join(lines[9:12]))  # of one process of several
    assert answer_rows(of, rows, seeds, tmp_path, ALONE) == predictions
    assert log.read_bytes().count(b"\n") == len(lines) - 3


def test_a_profile_overrides_shared_decoding_params() -> None:
    shared = decoding_params(max_new_tokens=8, top_k=5)
    decoding = ProfileInfer(batch_size=2, temperature=1.0, seeds=[1, 2]).decoding(shared)
    assert (decoding.temperature, decoding.seeds, decoding.top_k, decoding.max_new_tokens) == (1.0, [1, 2], 5, 8)
    with pytest.raises(UserError, match="temperature 0"):
        ProfileInfer(batch_size=2, seeds=[1, 2]).decoding(shared)
