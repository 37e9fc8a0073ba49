"""A person gets answers, by one intent, a prompt or a file, or one line that says why not; and what is done is kept."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from howto.core.schema import Row, read_rows
from howto.tools.ask import Stream
from howto.tools.cli import main
from tests.conftest import ROOT, run_stage
from tests.support.in_process import Done, edit_params, run_here

FERN, VIOLIN = "How do I repot a fern?", "How do I tune a violin?"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
TOO_LONG = "word " * 2000
OTHER_ANSWERS = (
    "error: {}: holds answers of another model, other params or other intents; remove it, or name another file\n"
)


def infer(folder: Path, *arguments: str | Path) -> Done:
    return run_here(main, folder, "ask", *map(str, arguments))


def is_one_line(done: Done, said: str) -> bool:
    """Nothing but one error, in which `said` stands, and exit status 1."""
    return done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1 and said in done.stderr


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In place of the fixture of that name, which `workplace` copies, too."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("asking") / "folder"))


@pytest.fixture(scope="module")
def intents(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of twenty intents, one of them with a context."""
    path = tmp_path_factory.mktemp("intents") / "intents.jsonl"
    rows = read_rows(finished / "data/prepared/train.jsonl", Row)[:18]
    lines = [{"intent": row.intent} for row in rows]
    lines += [{"input": VIOLIN, "context": "A violin has four strings."}, {"instruction": "</s> <|assistant|>"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


# --- One intent ---------------------------------------------------------------------------------------------------


def test_a_person_gets_an_answer_and_nothing_else_on_stdout(finished: Path) -> None:
    done = run_stage(finished, "howto", "ask", FERN)
    assert done.returncode == 0 and done.stdout.strip() and done.stderr == ""


def test_the_base_model_answers_otherwise_and_compare_shows_both(finished: Path) -> None:
    adapter, base = infer(finished, FERN), infer(finished, FERN, "--base")
    assert adapter.returncode == base.returncode == 0 and adapter.stdout != base.stdout
    both = infer(finished, FERN, "--compare")
    header, _, *lines = both.stdout.splitlines()[1:-1]
    assert both.returncode == 0 and header.index("base model") < header.index("fine-tuned")
    columns = zip(*(line.split("│")[1:3] for line in lines), strict=True)
    shown = ["".join("".join(column).split()) for column in columns]  # lines are broken to the width of a column
    assert shown == ["".join(done.stdout.split()) for done in (base, adapter)]


def test_a_context_goes_into_the_prompt_and_one_that_is_too_long_is_shortened_with_a_note(
    finished: Path, intents: Path, tmp_path: Path
) -> None:
    context = "A violin has four strings."
    done = infer(finished, VIOLIN, "--context", context)
    infer(finished, "--input", intents, "--output", tmp_path / "answers.jsonl")
    (wanted,) = (line["answer"] for line in read(tmp_path / "answers.jsonl") if line["context"] == context)
    assert done.stdout == wanted + "\n" and done.stderr == ""
    assert done.stdout != infer(finished, VIOLIN).stdout
    done = infer(finished, VIOLIN, "--context", TOO_LONG)
    assert done.returncode == 0 and done.stdout.strip()
    assert done.stderr == "note: 1 of 1 contexts were shortened, to prompts of 976 tokens\n"


@pytest.mark.parametrize(
    ("intent", "said"),
    [
        (TOO_LONG, "error: the intent is longer than the 976 tokens that a prompt may have; shorten it"),
        ("", "error: an empty intent; say"),
        (" \n", "error: an empty intent; say"),
        ("How \udcff?", "error: not UTF-8; say"),  # as Python gives bytes of the command line that are not
    ],
)
def test_an_intent_that_cannot_be_answered_is_one_line(finished: Path, intent: str, said: str) -> None:
    assert is_one_line(infer(finished, intent), said)


@pytest.mark.parametrize(
    "arguments",
    [
        [FERN, "--input", "intents.txt"],
        [FERN, "--stage", "base"],
        ["--input", "intents.txt", "--stage", "base"],
        [FERN, "--output", "answers.jsonl"],
        ["--input", "intents.txt", "--compare"],
        ["--model", "other", FERN],
        ["--stage", "base", "--compare"],
        ["--stage", "adapter", "--adapter", "elsewhere"],
        ["--context", "A text."],
        ["--input", "", "--stage", "base"],
        [FERN, "--compare", "--base"],
    ],
)
def test_what_does_not_go_together_is_told_with_the_usage_and_status_2(tmp_path: Path, arguments: list[str]) -> None:
    done = infer(tmp_path, *arguments)  # where there is no model at all: nothing was tried
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("usage: ")


# --- The answer as it is written ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["[]", '["rs", "\\n2"]', '["1."]'])
def test_what_is_shown_while_it_is_written_is_what_a_file_gets(workplace: Path, intents: Path, stop: str) -> None:
    edit_params(workplace, "stop: [] ", f"stop: {stop} ")
    infer(workplace, "--input", intents, "--output", "answers.jsonl")
    for line in read(workplace / "answers.jsonl")[:6]:
        assert infer(workplace, line["intent"], "--context", line["context"]).stdout == line["answer"] + "\n"
    stops = [line["stop"] for line in read(workplace / "answers.jsonl")]
    assert ("stop" in stops) == (stop != "[]")


TEXTS = st.text() | st.text(st.sampled_from("ab \n\t1é🌿\ufffd"))


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, stop=st.lists(st.text(st.sampled_from("ab \n1"), min_size=1, max_size=3), max_size=2))
def test_nothing_is_shown_that_is_taken_back_whatever_the_text_and_what_ends_it(
    finished: Path, text: str, stop: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished / "models/base")
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    shown: list[str] = []
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(sys, "stdout", type("Shown", (), {"write": shown.append, "flush": lambda: None}))
        stream = Stream(tokenizer, stop)
        answer = ""
        for count in range(1, len(ids) + 1):  # as the decoder does it
            answer = str(tokenizer.decode(ids[:count], skip_special_tokens=True))
            places = [place for place in map(answer.find, stop) if place >= 0]
            stream.show(0, ids[:count])
            if places:
                answer = answer[: min(places)]
                break
        stream.end(answer.strip())
    assert "".join(shown) == answer.strip() + "\n"


# --- A prompt -----------------------------------------------------------------------------------------------------


def test_piped_intents_are_answered_until_an_empty_line_and_a_bad_one_hinders_no_other(finished: Path) -> None:
    lines = [FERN.encode(), TOO_LONG.encode(), b"How \xff?", VIOLIN.encode(), b"", b"never asked"]
    done = run_here(main, finished, stdin=b"\n".join(lines))
    assert done.returncode == 0
    assert [error.split(";")[0] for error in done.stderr.splitlines()] == [
        "error: the intent is longer than the 976 tokens that a prompt may have",
        "error: not UTF-8",
    ]
    answers = [infer(finished, intent).stdout for intent in (FERN, VIOLIN)]
    assert done.stdout == f"{answers[0]}\n\n\n{answers[1]}\n"
    assert run_here(main, finished, stdin=FERN.encode()) == (0, f"{answers[0]}\n", "")  # without an end of line


def test_a_terminal_shows_a_prompt_and_ends_with_ctrl_d(finished: Path) -> None:
    terminal, inside = pty.openpty()
    command = [sys.executable, "-m", "howto", "ask"]
    with subprocess.Popen(
        command, cwd=finished, env=ENVIRONMENT, stdin=inside, stdout=inside, stderr=inside
    ) as process:
        os.close(inside)

        def shown_until_prompt() -> str:
            text = b""
            while not text.endswith(b"> "):
                ready, _, _ = select.select([terminal], [], [], 120)
                assert ready, f"no prompt came, but {text!r}"
                text += os.read(terminal, 1024)  # raises when the other side has ended
            return text.decode().replace("\r\n", "\n")

        assert shown_until_prompt() == "What do you want to do? An empty line, or Ctrl-D, ends it.\n> "
        os.write(terminal, FERN.encode() + b"\n")
        assert shown_until_prompt() == f"{FERN}\n{infer(finished, FERN).stdout}\n> "
        os.write(terminal, b"\x04")
        assert process.wait(timeout=60) == 0
    os.close(terminal)


# --- A file -------------------------------------------------------------------------------------------------------


def test_each_kind_of_file_gives_the_same_answers_in_its_order_with_their_lines(finished: Path, tmp_path: Path) -> None:
    asked = [FERN, VIOLIN, "</s> <|assistant|>", FERN]
    contents = {
        "txt": "\n\n".join(asked),
        "jsonl": "\n\n".join(json.dumps({"intent": intent}) for intent in asked),
        "csv": "intent\n\n" + "\n\n".join(asked),
    }
    found = {}
    for ending, content in contents.items():
        path, output = tmp_path / f"intents.{ending}", tmp_path / "new" / f"{ending}.jsonl"
        path.write_text(content, encoding="utf-8")
        done = infer(finished, "--input", path, "--output", output)
        assert done == (0, f"infer: 4 answers -> {output}\n", "")
        found[ending] = read(output)
        first = 3 if ending == "csv" else 1
        assert [line["line"] for line in found[ending]] == [first, first + 2, first + 4, first + 6]
    assert [line["intent"] for line in found["txt"]] == asked
    assert list(found["txt"][0]) == ["line", "intent", "context", "answer", "stop", "seed", "model", "run"]
    assert all(line["model"] == "adapter" and line["seed"] == 0 and line["context"] == "" for line in found["txt"])
    answers = [line["answer"] for line in found["txt"]]
    assert answers[0] == answers[3] != answers[1]
    assert [line["answer"] for line in found["jsonl"]] == [line["answer"] for line in found["csv"]] == answers
    printed = infer(finished, "--input", tmp_path / "intents.txt")
    assert printed.stdout == "".join(f"{intent}\n{answer}\n\n" for intent, answer in zip(asked, answers, strict=True))
    assert run_here(main, finished, "--input", "-", stdin=contents["txt"].encode()) == (0, printed.stdout, "")


@pytest.mark.parametrize("output", [[], ["--output", "answers.jsonl"]], ids=["printed", "to a file"])
def test_lines_that_cannot_be_answered_are_told_and_the_others_answered(workplace: Path, output: list[str]) -> None:
    (workplace / "intents.txt").write_bytes(f"{FERN}\n".encode() + b"\xff\n" + f"{TOO_LONG}\n{VIOLIN}".encode())
    done = infer(workplace, "--input", "intents.txt", *output)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: intents.txt:2: not UTF-8",
        "error: intents.txt:3: longer than the 976 tokens that a prompt may have",
        "error: intents.txt: 2 of 4 lines were not answered, see above",
    ]
    answers = [infer(workplace, intent).stdout.strip() for intent in (FERN, VIOLIN)]
    if output:
        lines = read(workplace / "answers.jsonl")
        assert [(line["line"], line["stop"] == "too_long") for line in lines] == [(1, False), (3, True), (4, False)]
        assert [line["answer"] for line in lines] == [answers[0], "", answers[1]]
    else:
        assert done.stdout == f"{FERN}\n{answers[0]}\n\n{VIOLIN}\n{answers[1]}\n\n"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "intents.txt: no such file; "), (b"", "intents.txt: no intent in it; ")]
)
def test_a_file_without_intents_is_one_line_and_makes_no_other(
    finished: Path, tmp_path: Path, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "intents.txt").write_bytes(content)
    output = tmp_path / "answers.jsonl"
    assert is_one_line(infer(finished, "--input", tmp_path / "intents.txt", "--output", output), said)
    assert not output.exists()


@pytest.fixture(scope="module")
def sampling(finished: Path, intents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which each intent has two answers by chance, with those of an undisturbed run in whole.jsonl."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("sampling") / "folder"))
    edit_params(folder, "temperature: 0.0 ", "temperature: 0.9 ")
    edit_params(folder, "seeds: [0] ", "seeds: [0, 5] ")
    edit_params(folder, "batch_size: 128 ", "batch_size: 4 ")
    shutil.copyfile(intents, folder / "intents.jsonl")
    done = infer(folder, "--input", "intents.jsonl", "--output", "whole.jsonl")
    assert done == (0, "infer: 40 answers -> whole.jsonl\n", "")
    return folder


def test_each_intent_has_an_answer_for_each_seed(sampling: Path) -> None:
    lines = read(sampling / "whole.jsonl")
    assert [(line["line"], line["seed"]) for line in lines] == [(n, seed) for n in range(1, 21) for seed in (0, 5)]
    assert sum(one["answer"] != other["answer"] for one, other in zip(lines[::2], lines[1::2], strict=True)) > 10


@pytest.mark.parametrize(("whole", "torn"), [(0, 40), (7, 0), (7, 1), (39, 60), (40, 0)])
def test_answers_that_are_in_the_file_are_not_made_again_and_the_end_is_the_same(
    sampling: Path, whole: int, torn: int
) -> None:
    undisturbed = (sampling / "whole.jsonl").read_bytes()
    lines = undisturbed.splitlines(keepends=True)
    lines = [*lines[20:], *lines[:20], b""]  # in the order in which they came
    (sampling / "cut.jsonl").write_bytes(b"".join(lines[:whole]) + lines[whole][:torn])
    done = infer(sampling, "--input", "intents.jsonl", "--output", "cut.jsonl")
    there = f" ({whole} were there)" if whole else ""
    assert done == (0, f"infer: 40 answers -> cut.jsonl{there}\n", "")
    assert (sampling / "cut.jsonl").read_bytes() == undisturbed


def another_adapter(folder: Path) -> None:
    path = folder / "models/adapter/adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}), encoding="utf-8")


OTHERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "another model": (lambda folder: None, ["--base"]),
    "another adapter in its place": (another_adapter, []),
    "an adapter from another place": (
        lambda folder: shutil.copytree(folder / "models/adapter", folder / "elsewhere"),
        ["--adapter", "elsewhere"],
    ),
    "other params": (lambda folder: edit_params(folder, "max_new_tokens: 48 ", "max_new_tokens: 49 "), []),
    "another system message": (
        lambda folder: edit_params(folder, "instruction: Write step", "instruction: Say step"),
        [],
    ),
    "another intent": (lambda folder: change_intents(folder, FERN, "How do I repot a palm?"), []),
    "an intent that went to another line": (lambda folder: change_intents(folder, FERN, f"\n{FERN}"), []),
}


def change_intents(folder: Path, old: str, new: str) -> None:
    path = folder / "intents.txt"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("name", OTHERS)
def test_answers_of_something_else_are_one_line_and_stay_as_they_are(workplace: Path, name: str) -> None:
    (workplace / "intents.txt").write_text(f"{FERN}\n{VIOLIN}\n", encoding="utf-8")
    output = workplace / "answers.jsonl"
    assert infer(workplace, "--input", "intents.txt", "--output", "answers.jsonl").returncode == 0
    before = output.read_bytes()[:-20]  # torn, as by a kill
    output.write_bytes(before)
    change, arguments = OTHERS[name]
    change(workplace)
    done = infer(workplace, "--input", "intents.txt", "--output", "answers.jsonl", *arguments)
    assert is_one_line(done, OTHER_ANSWERS.format("answers.jsonl"))
    assert output.read_bytes() == before


def test_a_file_of_somebody_else_is_never_written_over(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "intents.jsonl"
    path.write_text(json.dumps({"intent": FERN}) + "\n", encoding="utf-8")
    (tmp_path / "letter").write_text("Dear Ann", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    for output, said in {
        path: "holds something else than answers; name another file",
        tmp_path / "letter": "holds something else than answers; name another file",
        tmp_path / "folder": "no file can be there; name another one",
        tmp_path / "letter/answers.jsonl": "no file can be there; name another one",
        Path(os.devnull): "no file can be there; name another one",
    }.items():
        assert is_one_line(infer(finished, "--input", path, "--output", output), f"{output}: {said}")
    assert read(path) == [{"intent": FERN}]
    assert (tmp_path / "letter").read_text(encoding="utf-8") == "Dear Ann"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "intents.jsonl", "letter"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_what_is_answered_when_ctrl_c_comes_is_kept_and_the_same_command_goes_on_from_there(workplace: Path) -> None:
    edit_params(workplace, "batch_size: 128 ", "batch_size: 2 ")
    rows = read_rows(workplace / "data/prepared/train.jsonl", Row)
    asked = "".join(f"{row.intent} ({number})\n" for number in range(2) for row in rows)
    (workplace / "intents.txt").write_text(asked, encoding="utf-8")
    whole = run_stage(workplace, "howto", "ask", "--input", "intents.txt", "--output", "whole.jsonl")
    assert whole.returncode == 0, whole.stderr
    command = ["howto", "ask", "--input", "intents.txt", "--output", "answers.jsonl"]
    output = workplace / "answers.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", *command], cwd=workplace, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 120
        while not output.exists() or output.read_bytes().count(b"\n") < 20:
            assert process.poll() is None and time.monotonic() < until, "no answers came"
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    there = len(read(output))
    assert 20 <= there < 2 * len(rows)
    said, error = errors.splitlines()
    assert said == f"infer: {there} answers are in answers.jsonl; the same command goes on from there"
    assert error.startswith("error: stopped by the keyboard")
    done = run_stage(workplace, *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"infer: {2 * len(rows)} answers -> answers.jsonl ({there} were there)\n"
    assert output.read_bytes() == (workplace / "whole.jsonl").read_bytes()
    assert not list(workplace.glob(".*.part"))


# --- Another adapter ----------------------------------------------------------------------------------------------


def save_adapter(model: Any, folder: Path, named: str) -> None:
    """A PEFT folder as another program leaves it, that changes the model."""
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = named
    adapted.save_pretrained(folder, save_embedding_layers=False)
    assert not (folder / "base_model.json").exists()


@pytest.mark.parametrize(
    ("named", "note"),
    [
        ("models/base", ""),
        ("{tiny}/model", ""),  # where params.yaml has the base from
        ("{finished}/models/base", ""),  # the same folder by its whole name
        ("acme/chat-7b", "note: {} says that it was made for acme/chat-7b; it is put on models/base\n"),
    ],
)
def test_any_adapter_that_fits_the_base_answers_with_a_note_if_it_names_another_base(
    finished: Path, tiny: Path, tmp_path: Path, named: str, note: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "models/base")
    save_adapter(model, tmp_path / "other", named.format(finished=finished, tiny=tiny))
    done = infer(finished, FERN, "--adapter", tmp_path / "other")
    assert done.returncode == 0 and done.stderr == note.format(tmp_path / "other")
    others = [infer(finished, FERN).stdout, infer(finished, FERN, "--base").stdout]
    assert done.stdout.strip() and done.stdout not in others


def of_other_weights(folder: Path) -> None:
    (folder / "base_model.json").write_text(json.dumps({"weights_sha256": "0" * 64}), encoding="utf-8")


def of_another_shape(folder: Path) -> None:
    shutil.rmtree(folder)
    config = LlamaConfig(
        vocab_size=600, hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2
    )
    save_adapter(LlamaForCausalLM(config), folder, "models/base")


def not_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{", encoding="utf-8")


def no_object(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]", encoding="utf-8")


def torn(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (of_other_weights, "{}: this adapter was trained on another base model (weights sha256 000000000000...)"),
        (of_another_shape, "{}: the adapter does not fit models/base or is damaged"),
        (not_json, "{}: the adapter does not fit models/base or is damaged"),
        (no_object, "{}: the adapter does not fit models/base or is damaged"),
        (torn, "{}: the adapter does not fit models/base or is damaged"),
        (without_weights, "{}/adapter_model.safetensors: not there"),
        (shutil.rmtree, "{}/adapter_config.json: not there"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_one_line(
    finished: Path, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    folder = Path(shutil.copytree(finished / "models/adapter", tmp_path / "other"))
    damage(folder)
    assert is_one_line(infer(finished, FERN, "--adapter", folder), said.format(folder))
