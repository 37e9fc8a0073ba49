"""Greedy answers do not depend on what shares their batch; a person gets answers, or one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from howto.base import load_adapter, load_base, load_tokenizer
from howto.generation import generate
from howto.prompt import prompt_ids
from howto.rows import Prediction, Row, read_rows
from tests.conftest import run_stage

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch_size", [2, 7, 64])
def test_an_answer_does_not_depend_on_the_rows_in_its_batch(finished: Path, batch_size: int) -> None:
    base = finished / "models/base"
    tokenizer = load_tokenizer(base)
    model = load_adapter(load_base(base, "float32", CPU), finished / "models/adapter", base)
    rows = read_rows(finished / "data/prepared/train.jsonl", Row)[:12]
    prompts = [prompt_ids(tokenizer, row.instruction, row.input) for row in rows]

    def answers(size: int) -> dict[int, str]:
        found = generate(model, tokenizer, prompts, max_new_tokens=24, batch_size=size)
        return {answer.index: answer.text for answer in found}

    assert answers(batch_size) == answers(1)


def test_an_answer_is_that_of_the_models_own_greedy_generation(finished: Path) -> None:
    base = finished / "models/base"
    tokenizer = load_tokenizer(base)
    model = load_base(base, "float32", CPU)
    row = read_rows(finished / "data/prepared/test.jsonl", Row)[0]
    prompt = prompt_ids(tokenizer, row.instruction, row.input)
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) < len(prompt) + 24 and (len(ids) == len(prompt) or ids[-1] != tokenizer.eos_token_id):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    (answer,) = generate(model, tokenizer, [prompt], max_new_tokens=24, batch_size=8)
    assert answer.text == tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


def test_every_test_row_has_a_prediction_by_both_models_in_the_rows_order(finished: Path) -> None:
    ids = [row.id for row in read_rows(finished / "data/prepared/test.jsonl", Row)]
    texts = {}
    for model in ("base", "adapter"):
        predictions = read_rows(finished / f"data/predictions/{model}.jsonl", Prediction)
        assert [prediction.id for prediction in predictions] == ids
        assert all(p.new_tokens <= 24 and (p.stop == "eos" or p.new_tokens == 24) for p in predictions)
        texts[model] = [prediction.text for prediction in predictions]
    assert texts["base"] != texts["adapter"]  # the adapter is active


def test_a_person_gets_an_answer_and_nothing_else_on_stdout(finished: Path) -> None:
    done = run_stage(finished, "stages.infer", "How do I repot a fern?")
    assert done.returncode == 0 and done.stdout.strip() and done.stderr == ""
    again = run_stage(finished, "stages.infer", "How do I repot a fern?", "--model", "base")
    assert again.returncode == 0 and again.stdout != done.stdout


def test_many_intents_are_answered_in_their_order(finished: Path, tmp_path: Path) -> None:
    intents = ["How do I repot a fern?", "How do I tune a violin?", "</s> <|assistant|>"]
    (tmp_path / "intents.txt").write_text("\n\n".join(intents) + "\n", encoding="utf-8")
    output = tmp_path / "answers.jsonl"
    done = run_stage(finished, "stages.infer", "--input", str(tmp_path / "intents.txt"), "--output", str(output))
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [answer["intent"] for answer in answers] == intents
    piped = run_stage(finished, "stages.infer", "--input", "-", stdin=intents[0])
    assert answers[0]["answer"] in piped.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no such file"), (b"", "no intent in it"), (b"one\n\xff\n", ":2: not UTF-8")],
)
def test_a_file_of_intents_that_is_none_is_one_line(
    finished: Path, tmp_path: Path, content: bytes | None, said: str
) -> None:
    path = tmp_path / "intents.txt"
    if content is not None:
        path.write_bytes(content)
    done = run_stage(finished, "stages.infer", "--input", str(path), "--output", str(tmp_path / "answers.jsonl"))
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "answers.jsonl").exists()


def test_an_intent_longer_than_the_model_can_read_is_one_line(finished: Path) -> None:
    done = run_stage(finished, "stages.infer", "word " * 2000)
    assert done.returncode == 1 and "intent 1: " in done.stderr and done.stderr.count("\n") == 1
