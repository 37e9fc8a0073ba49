"""A model that cannot do what params ask for stops the run before the first step of training, with one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from howto.core.schema import Prediction, read_rows, write_rows
from tests.support.architectures import POSITIONS, make_run, tokenizer
from tests.support.in_process import Done, edit_params, run_stage_here

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, small_params: str) -> Make:
    """Return a function that writes the run of an architecture, ready for `fetch_model`."""

    def write(name: str, **settings: object) -> Path:
        make_run(tmp_path, small_params, name, **settings)
        return tmp_path

    return write


def stopped(done: Done, *phrases: str) -> None:
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert all(phrase in done.stderr for phrase in phrases), done.stderr


def prepared(folder: Path, *stages: str) -> Path:
    for stage in stages:
        done = run_stage_here(stage, folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "mpt"])
def test_a_context_window_shorter_than_max_length(name: str, make: Make) -> None:
    limit = {"max_seq_len" if name == "mpt" else "max_position_embeddings": POSITIONS - 1}
    folder = prepared(make(name, **limit), "fetch_model")
    stopped(run_stage_here("train", folder), "train.max_length: expected at most 511, the context window", "got 512")
    assert not (folder / "models/adapter").exists()


def test_answers_that_leave_no_room_for_a_prompt(make: Make) -> None:
    folder = prepared(make("gpt2"), "fetch_model")
    edit_params(folder, "max_new_tokens: 12 ", "max_new_tokens: 512 ")
    phrase = "infer.max_new_tokens: expected fewer than the 512 tokens that models/base can take"
    stopped(run_stage_here("train", folder), phrase)
    stopped(run_stage_here("infer@base", folder), phrase)


def test_answers_that_leave_too_little_room_for_any_prompt(make: Make) -> None:
    folder = prepared(make("gpt2"), "fetch_model")
    edit_params(folder, "max_new_tokens: 12 ", "max_new_tokens: 460 ")
    stopped(run_stage_here("train", folder), "no prompt in data/prepared/train.jsonl fits into 52 tokens")
    stopped(run_stage_here("infer@base", folder), "none of the 6 prompts fits into 52 tokens")


def test_prompts_that_are_too_long_are_counted(make: Make) -> None:
    folder = prepared(make("gpt2"), "fetch_model")
    edit_params(folder, "max_new_tokens: 12 ", "max_new_tokens: 450 ")
    done = run_stage_here("infer@base", folder)
    assert done.returncode == 0 and "infer: 4 prompts are longer than 62 tokens, and have empty answers" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "phrase"),
    [
        ("dropout: 0.0 ", "dropout: 0.05 ", "lora.dropout: PEFT has none for the experts of MixtralForCausalLM"),
        ("dora: false", "dora: true", "lora.dora: PEFT has none for the experts of MixtralForCausalLM"),
    ],
)
def test_experts_without_the_dropout_or_the_kind_of_adapter(make: Make, old: str, new: str, phrase: str) -> None:
    folder = prepared(make("mixtral"), "fetch_model")
    edit_params(folder, old, new)
    stopped(run_stage_here("train", folder), phrase, "target_modules", "[k_proj, o_proj, q_proj, v_proj]")
    edit_params(folder, "target_modules: all-linear", "target_modules: [k_proj, o_proj, q_proj, v_proj]")
    prepared(folder, "train")


def test_layers_that_peft_does_not_adapt(make: Make) -> None:
    folder = prepared(make("mamba"), "fetch_model")
    edit_params(folder, "exclude_modules: [out_proj] ", "exclude_modules: null ")
    stopped(run_stage_here("train", folder), "train.lora.exclude_modules: ", "Add out_proj")


def test_a_tokenizer_with_more_tokens_than_embeddings(make: Make) -> None:
    folder = make("llama")
    more = tokenizer()
    more.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    more.save_pretrained(folder / "model")
    stopped(run_stage_here("fetch_model", folder), "./model: 1 of its tokenizer's tokens have no embedding: '<|tool|>'")
    assert not (folder / "models/base").exists()


def test_a_tokenizer_model_alone(make: Make) -> None:
    folder = make("llama")
    (folder / "model/tokenizer.json").rename(folder / "model/tokenizer.model")
    stopped(run_stage_here("fetch_model", folder), "./model: no tokenizer.json, and a tokenizer.model alone")


@pytest.mark.parametrize(
    ("stop", "model", "phrase"),
    [
        ("too_long", "base", "each prompt is too long"),
        ("length", "base", "control tokens or white space"),
        ("eos", "base", "its chat template may not be the one of its training"),
        ("eos", "adapter", "Lower learning_rate"),
    ],
)
def test_answers_that_are_all_empty_are_not_scored(workplace: Path, stop: str, model: str, phrase: str) -> None:
    path = workplace / f"data/predictions/{model}.jsonl"
    answers = read_rows(path, Prediction)
    empty = [one.model_copy(update={"text": "", "stop": stop}) for one in answers]
    write_rows(path, [*empty[:-1], answers[-1]])
    assert run_stage_here("evaluate", workplace).returncode == 0, "one answer is enough"
    write_rows(path, empty)
    stopped(run_stage_here("evaluate", workplace), f"{model}.jsonl: all {len(answers)} answers are empty: ", phrase)
