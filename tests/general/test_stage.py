"""The stage measures what transformers measures, an adapter that does damage shows it, and errors are one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.kills import digest
from howto.general.results import GeneralResults, read_results
from howto.inference import generator
from howto.modeling import loading
from howto.tools.cli import main as howto
from tests.support.architectures import NEW_TOKENS, make_run
from tests.support.in_process import Done, edit_params, run_here, run_stage_here

TEXTS = ["Open a tap, and then water the fern. </s> is no control token here. " * 3, "Paint the chair.", "a b"]
QUESTIONS: list[dict[str, Any]] = [
    {"question": "How is the fern?", "accepted": ["fine"]},
    {"question": "Is it late? </s>"},
]
BASE, ADAPTER = (f"data/predictions/general_{model}.json" for model in ("base", "adapter"))


def ask(folder: Path, *, text: str = "text.jsonl", chat: str = "chat.jsonl", max_tokens: int = 40) -> Path:
    """Let params.yaml name small inputs, which are written beside it."""
    for name, lines in (("text.jsonl", [{"text": text} for text in TEXTS]), ("chat.jsonl", QUESTIONS)):
        (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    edit_params(folder, "text: null ", f"text: {text} ")
    edit_params(folder, "chat: null ", f"chat: {chat} ")
    edit_params(folder, "max_tokens: 512 ", f"max_tokens: {max_tokens} ")
    edit_params(folder, "max_new_tokens: 64 ", f"max_new_tokens: {NEW_TOKENS} ")
    return folder


def measured(folder: Path, model: str) -> GeneralResults:
    done = run_stage_here(f"general@{model}", folder)
    assert done.returncode == 0, done.stderr
    return read_results(folder / f"data/predictions/general_{model}.json", "")


def expected(folder: Path, *, adapter: bool, max_tokens: int) -> tuple[list[tuple[int, float]], list[str]]:
    """Tokens and mean log-probability of each passage by transformers' own loss, and answers by its `generate`."""
    model = AutoModelForCausalLM.from_pretrained(folder / "models/base").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/base")
    if adapter:
        model = PeftModel.from_pretrained(model, folder / "models/adapter").eval()
    passages, answers = [], []
    for text in TEXTS:
        ids = tokenizer(text, split_special_tokens=True).input_ids
        for start in range(0, len(ids) - 1, max_tokens - 1):
            part = torch.tensor([ids[start : start + max_tokens]])
            with torch.inference_mode():
                passages.append((part.shape[1] - 1, -model(input_ids=part, labels=part).loss.item()))
    for question in QUESTIONS[:1]:
        messages = [{"role": "user", "content": question["question"]}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        new = model.generate(input_ids=prompt, max_new_tokens=NEW_TOKENS, do_sample=False)[0, prompt.shape[1] :]
        answers.append(tokenizer.decode(new, skip_special_tokens=True).strip())
    return passages, answers


def assert_as_expected(found: GeneralResults, passages: list[tuple[int, float]], answers: list[str]) -> None:
    assert [one.tokens for one in found.passages] == [tokens for tokens, _ in passages]
    means = [mean for _, mean in passages]
    assert [one.log_probability for one in found.passages] == pytest.approx(means, abs=1e-4)
    assert [one.text for one in found.answers[:1]] == answers and len(found.answers) == len(QUESTIONS)


def test_perplexity_is_by_transformers_own_loss_and_answers_by_its_generate_and_bytes_are_the_same_twice(
    workplace: Path,
) -> None:
    folder = ask(workplace)
    found = {model: measured(folder, model) for model in ("base", "adapter")}
    for model, results in found.items():
        assert_as_expected(results, *expected(folder, adapter=model == "adapter", max_tokens=40))
    names = [one.name for one in found["base"].passages]
    assert names[0].startswith("text.jsonl:1 (1 of ") and names[-2:] == ["text.jsonl:2", "text.jsonl:3"]
    assert found["base"] != found["adapter"]
    before = digest(folder / ADAPTER)
    assert measured(folder, "adapter") == found["adapter"] and digest(folder / ADAPTER) == before


@pytest.mark.parametrize("name", ["falcon_alibi", "mamba"])
def test_a_model_that_answers_one_row_at_a_time_is_measured_alike(name: str, tmp_path: Path, small_params: str) -> None:
    make_run(tmp_path, small_params, name)
    ask(tmp_path)
    assert run_stage_here("fetch_model", tmp_path).returncode == 0
    assert_as_expected(measured(tmp_path, "base"), *expected(tmp_path, adapter=False, max_tokens=40))


def evaluation(folder: Path) -> dict[str, Any]:
    done = run_stage_here("evaluate", folder)
    assert done.returncode == 0, done.stderr
    return dict(json.loads((folder / "metrics/evaluation.json").read_text(encoding="utf-8")))


def test_a_poisoned_adapter_raises_perplexity_in_every_place_where_it_is_reported(workplace: Path) -> None:
    folder = ask(workplace)
    path = folder / "models/adapter/adapter_model.safetensors"
    save_file({name: weight * (8 if "lora_B" in name else 1) for name, weight in load_file(path).items()}, path)
    for model in ("base", "adapter"):
        measured(folder, model)
    found = evaluation(folder)
    base, adapter = (found["general"][model]["perplexity"] for model in ("base", "adapter"))
    assert adapter > 1.2 * base
    metrics = json.loads((folder / "metrics/metrics.json").read_text(encoding="utf-8"))
    assert metrics["general"] == {"perplexity_change": pytest.approx(adapter / base - 1, rel=1e-3)}
    assert found["chat"]["questions"] == 2 and found["chat"]["checkable"] == 1
    report = (folder / "metrics/report.html").read_text(encoding="utf-8")
    assert "On general text, perplexity is" in report and "Is it late?" in report
    assert "On general text, perplexity is" in run_here(howto, folder, "compare", "--rows", "0").stdout


def test_without_text_and_questions_no_model_is_loaded_and_nothing_is_reported(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generator, "load_base", None)
    assert measured(workplace, "base") == GeneralResults()
    (workplace / BASE).unlink()
    found = evaluation(workplace)
    assert not {"general", "chat"} & found.keys()
    assert "general" not in json.loads((workplace / "metrics/metrics.json").read_text(encoding="utf-8"))
    report = (workplace / "metrics/report.html").read_text(encoding="utf-8")
    assert '"chat":[]' in report and '"cost":""' in report


def test_text_alone_or_questions_alone_are_measured(workplace: Path) -> None:
    folder = ask(workplace, chat="null")
    for model in ("base", "adapter"):
        assert measured(folder, model).answers == []
    found = evaluation(folder)
    assert "general" in found and "chat" not in found


def one_line(done: Done, *phrases: str) -> None:
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and all(phrase in done.stderr for phrase in phrases), done.stderr


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "phrases"),
    [
        (lambda folder: (folder / "text.jsonl").unlink(), ("general.text", "text.jsonl", "no such file")),
        (lambda folder: (folder / "chat.jsonl").unlink(), ("general.chat", "chat.jsonl", "no such file")),
        (write("text.jsonl", ""), ("general.text", "no text")),
        (write("chat.jsonl", "\n"), ("general.chat", "no questions")),
        (write("text.jsonl", '{"text": "a"}\n{"text": '), ("text.jsonl:2",)),
        (write("chat.jsonl", '{"question": "a", "accepted": "b"}\n'), ("chat.jsonl:1", "accepted")),
        (write("chat.jsonl", '{"question": " "}\n'), ("chat.jsonl:1", "question")),
        (lambda folder: (folder / "text.jsonl").write_bytes(b"\xff"), ("text.jsonl", "UTF-8")),
        (lambda folder: edit_params(folder, "max_tokens: 40 ", "max_tokens: 5000 "), ("general.max_tokens", "window")),
        (lambda folder: shutil.rmtree(folder / "models/base"), ("models/base",)),
    ],
)
def test_a_missing_or_damaged_input_is_one_line_and_leaves_the_output_as_it_was(
    damage: Callable[[Path], Any], phrases: tuple[str, ...], workplace: Path
) -> None:
    folder = ask(workplace)
    (folder / "text.jsonl").write_text(json.dumps({"text": "Open a tap. " * 500}) + "\n", encoding="utf-8")
    before = digest(folder / BASE)
    damage(folder)
    one_line(run_stage_here("general@base", folder), *phrases)
    assert digest(folder / BASE) == before


def test_a_text_that_is_edited_while_the_stage_runs_is_an_error_at_its_end(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, load_base = ask(workplace), loading.load_base

    def load_and_edit(*arguments: Any) -> Any:
        write("text.jsonl", '{"text": "Another one."}\n')(folder)
        return load_base(*arguments)

    monkeypatch.setattr(generator, "load_base", load_and_edit)
    before = digest(folder / BASE)
    one_line(run_stage_here("general@base", folder), "text.jsonl: changed while the stage ran")
    assert digest(folder / BASE) == before


def test_evaluate_stops_on_results_that_are_missing_or_of_other_questions(workplace: Path) -> None:
    folder = ask(workplace)
    for model in ("base", "adapter"):
        measured(folder, model)
    write("chat.jsonl", json.dumps(QUESTIONS[1]) + "\n")(folder)
    measured(folder, "base")
    one_line(run_stage_here("evaluate", folder), "general_base.json", "other inputs")
    (folder / BASE).write_text("{", encoding="utf-8")
    one_line(run_stage_here("evaluate", folder), f"{BASE}: damaged", "general@base")
    (folder / BASE).unlink()
    one_line(run_stage_here("evaluate", folder), f"{BASE}: no such file", "general@base")
