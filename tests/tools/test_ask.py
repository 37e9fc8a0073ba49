"""`howto ask` answers an intent, a prompt or a file, or prints one error line. It keeps finished answers."""

import itertools
import json
import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from howto.core.schema import Row, read_rows
from howto.inference.decoder import Answer
from howto.inference.generator import Generator
from howto.tools.ask import Stream
from howto.tools.cli import main
from tests.conftest import ROOT
from tests.support.in_process import Done, edit_params, run_here

FERN, VIOLIN, CONTEXT = "How do I repot a fern?", "How do I tune a violin?", "A violin has four strings."
TOO_LONG = "word " * 2000


def ask(folder: Path, *arguments: str | Path, stdin: bytes = b"") -> Done:
    return run_here(main, folder, "ask", *map(str, arguments), stdin=stdin)


def is_one_error(done: Done, message: str) -> bool:
    return done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1 and message in done.stderr


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def intents(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of ten intents, one of them with a context."""
    path = tmp_path_factory.mktemp("intents") / "intents.jsonl"
    rows = read_rows(finished / "data/prepared/train.jsonl", Row)[:8]
    lines = [{"intent": row.intent} for row in rows]
    lines += [{"input": VIOLIN, "context": CONTEXT}, {"instruction": "</s> <|assistant|>"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_base_and_adapter_answer_differently_and_compare_shows_both(finished: Path) -> None:
    adapter, base = ask(finished, FERN), ask(finished, FERN, "--base")
    assert adapter.returncode == base.returncode == 0 and adapter.stdout.strip() != base.stdout.strip()
    both = ask(finished, FERN, "--compare")
    header, _, *lines = both.stdout.splitlines()[1:-1]
    assert both.returncode == 0 and header.index("base model") < header.index("fine-tuned")
    columns = zip(*(line.split("│")[1:3] for line in lines), strict=True)
    shown = ["".join("".join(column).split()) for column in columns]  # lines are broken to the width of a column
    assert shown == ["".join(done.stdout.split()) for done in (base, adapter)]


def test_a_context_goes_into_the_prompt_and_a_too_long_one_is_shortened_with_a_note(finished: Path) -> None:
    done = ask(finished, VIOLIN, "--context", CONTEXT)
    assert done.stdout != ask(finished, VIOLIN).stdout and done.stderr == ""
    done = ask(finished, VIOLIN, "--context", TOO_LONG)
    assert done.returncode == 0 and done.stdout.strip()
    assert done.stderr.startswith("note: 1 contexts were shortened") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("intent", "message"),
    [(TOO_LONG, "longer than the 976 tokens"), (" \n", "at least 1 character"), ("How \udcff?", "unicode")],
)
def test_an_intent_that_cannot_be_answered_is_one_line(finished: Path, intent: str, message: str) -> None:
    assert is_one_error(ask(finished, intent), message)


@pytest.mark.parametrize(
    "arguments",
    [[FERN, "--output", "answers.jsonl"], ["--input", "a.txt", "--compare"], [FERN, "--base", "--adapter", "other"]],
)
def test_options_that_exclude_each_other_exit_with_the_usage_and_status_2(tmp_path: Path, arguments: list[str]) -> None:
    done = ask(tmp_path, *arguments)  # in a folder without a model: none is loaded
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("Usage: ")


@pytest.mark.parametrize("stop", ["[]", '["rs", "\\n2"]'])
def test_an_answer_printed_while_it_is_decoded_is_the_one_in_a_file(workplace: Path, intents: Path, stop: str) -> None:
    edit_params(workplace, "stop: [] ", f"stop: {stop} ")
    ask(workplace, "--input", intents, "--output", "answers.jsonl")
    lines = read(workplace / "answers.jsonl")
    for line in [*lines[:3], lines[8]]:
        assert ask(workplace, line["intent"], "--context", line["context"]).stdout == line["answer"] + "\n"
    assert ("stop" in {line["stop"] for line in lines}) == (stop != "[]")


def test_printed_text_is_never_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer: Any = SimpleNamespace(decode=lambda text, **_: text)
    stream = Stream(tokenizer, ["END", "\n2"])
    for text in ("Go", "Go EN", "Go ENTER \ufffd", "Go ENTER 🌿\n", "Go ENTER 🌿\n2. Stop"):  # as decoded so far
        stream.update(None, text)  # type: ignore[arg-type]
    stream.end("Go ENTER 🌿")
    assert capsys.readouterr().out == "Go ENTER 🌿\n"


def test_piped_intents_are_answered_until_an_empty_line_and_a_bad_one_fails_alone(finished: Path) -> None:
    lines = [FERN.encode(), TOO_LONG.encode(), b"How \xff?", VIOLIN.encode(), b"", b"never asked"]
    done = ask(finished, stdin=b"\n".join(lines))
    assert done.returncode == 0
    assert ["tokens" in error or "unicode" in error for error in done.stderr.splitlines()] == [True, True]
    answers = [ask(finished, intent).stdout for intent in (FERN, VIOLIN)]
    assert done.stdout == f"{answers[0]}\n\n\n{answers[1]}\n"
    assert ask(finished, stdin=FERN.encode()) == (0, f"{answers[0]}\n", "")  # without an end of line


def test_a_terminal_shows_a_prompt_and_the_answer_alone_and_ends_with_ctrl_d(finished: Path) -> None:
    terminal, inside = pty.openpty()
    command, env = [sys.executable, "-m", "howto", "ask"], {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    with subprocess.Popen(command, cwd=finished, env=env, stdin=inside, stdout=inside, stderr=inside) as process:
        os.close(inside)
        shown = []
        for typed in (FERN.encode() + b"\n", b"\x04"):
            text = b""
            while not text.endswith(b"> "):
                ready, _, _ = select.select([terminal], [], [], 120)
                assert ready, f"no prompt after {text!r}"
                text += os.read(terminal, 1024)  # raises when the process has ended
            shown.append(text.decode().replace("\r\n", "\n"))
            os.write(terminal, typed)
        assert process.wait(timeout=60) == 0
    os.close(terminal)
    assert "Ctrl-D" in shown[0] and shown[0].endswith("\n> ")
    assert shown[1] == f"{FERN}\n{ask(finished, FERN).stdout}\n> "


def test_a_file_gives_the_same_answers_in_its_order_to_a_file_and_printed(finished: Path, tmp_path: Path) -> None:
    asked = [FERN, VIOLIN, "</s> <|assistant|>", FERN]
    path, output = tmp_path / "intents.csv", tmp_path / "new" / "answers.jsonl"
    path.write_text("\n\n".join(["intent", *asked]), encoding="utf-8")
    assert ask(finished, "--input", path, "--output", output) == (0, f"ask: 4 answers -> {output}\n", "")
    lines = read(output)
    assert [(line["line"], line["intent"]) for line in lines] == list(enumerate(asked, 1))
    assert all(line["model"] == "adapter" and line["seed"] == 0 and line["context"] == "" for line in lines)
    assert lines[0]["answer"] == lines[3]["answer"] != lines[1]["answer"]
    printed = "".join(f"{line['intent']}\n{line['answer']}\n\n" for line in lines)
    assert ask(finished, "--input", path) == (0, printed, "")
    assert ask(finished, "--input", "-", stdin="\n\n".join(asked).encode()) == (0, printed, "")


def test_json_that_is_piped_into_the_prompt_is_refused_and_read_as_input(finished: Path) -> None:
    rows = json.dumps([{"intent": FERN}, {"messages": [{"role": "user", "content": VIOLIN}]}], indent=1).encode()
    assert is_one_error(ask(finished, stdin=rows), "Give it with `--input -`")
    done = ask(finished, "--input", "-", stdin=rows)
    assert done.returncode == 0 and done.stdout.splitlines()[0] == FERN and f"\n\n{VIOLIN}\n" in done.stdout


def test_a_conversation_is_answered_and_its_answer_is_kept_with_what_was_said_before(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": FERN}]
    talk += [{"role": "assistant", "content": "Which pot?"}, {"role": "user", "content": VIOLIN}]
    (workplace / "rows.jsonl").write_text(json.dumps({"messages": talk}), encoding="utf-8")
    rows: list[Row] = []
    encode = Generator.encode
    monkeypatch.setattr(Generator, "encode", lambda self, row: rows.append(row) or encode(self, row))  # type: ignore[func-returns-value]
    command = ["--input", "rows.jsonl", "--output", "answers.jsonl"]
    assert ask(workplace, *command) == (0, "ask: 1 answers -> answers.jsonl\n", "")
    (line,) = read(workplace / "answers.jsonl")
    assert (line["intent"], line["history"], line["system"]) == (VIOLIN, talk[1:3], "Be brief.")
    assert rows[0].instruction == "Be brief." and [turn.model_dump() for turn in rows[0].history] == talk[1:3]
    assert ask(workplace, *command).stdout == "ask: 1 answers -> answers.jsonl (1 from before)\n"
    (workplace / "rows.jsonl").write_text(json.dumps({"messages": talk[3:]}), encoding="utf-8")
    assert is_one_error(ask(workplace, *command), "answers of another model, params or intents")


def test_lines_that_cannot_be_answered_are_named_and_the_others_answered(workplace: Path) -> None:
    (workplace / "intents.txt").write_bytes(f"{FERN}\n".encode() + b"\xff\n" + f"{TOO_LONG}\n{VIOLIN}".encode())
    runs = [ask(workplace, "--input", "intents.txt", *output) for output in ([], ["--output", "answers.jsonl"])]
    starts = ["intents.txt:2: ", "intents.txt:3: longer than the 976 tokens", "intents.txt: 2 of 4 "]
    for done in runs:
        assert done.returncode == 1
        assert all(line.startswith(f"error: {at}") for line, at in zip(done.stderr.splitlines(), starts, strict=True))
    answers = [ask(workplace, intent).stdout.strip() for intent in (FERN, VIOLIN)]
    assert runs[0].stdout == f"{FERN}\n{answers[0]}\n\n{VIOLIN}\n{answers[1]}\n\n"
    lines = read(workplace / "answers.jsonl")
    assert [(line["line"], line["stop"] == "too_long") for line in lines] == [(1, False), (3, True), (4, False)]
    assert [line["answer"] for line in lines] == [answers[0], "", answers[1]]


@pytest.fixture(scope="module")
def sampling(finished: Path, intents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which each intent gets two sampled answers, with those of an undisturbed run in complete.jsonl."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("sampling") / "folder"))
    edit_params(folder, "temperature: 0.0 ", "temperature: 0.9 ")
    edit_params(folder, "seeds: [0] ", "seeds: [0, 5] ")
    edit_params(folder, "batch_size: 128 ", "batch_size: 4 ")
    shutil.copyfile(intents, folder / "intents.jsonl")
    done = ask(folder, "--input", "intents.jsonl", "--output", "complete.jsonl")
    assert done == (0, "ask: 20 answers -> complete.jsonl\n", "")
    lines = read(folder / "complete.jsonl")
    assert [(line["line"], line["seed"]) for line in lines] == [(n, seed) for n in range(1, 11) for seed in (0, 5)]
    assert sum(one["answer"] != other["answer"] for one, other in zip(lines[::2], lines[1::2], strict=True)) > 5
    return folder


@pytest.mark.parametrize(("complete", "torn"), [(0, 40), (7, 1), (20, 0)])
def test_a_resumed_file_ends_with_the_same_bytes(sampling: Path, complete: int, torn: int) -> None:
    undisturbed = (sampling / "complete.jsonl").read_bytes()
    lines = undisturbed.splitlines(keepends=True)
    lines = [*lines[10:], *lines[:10], b""]  # in the order in which they ended
    (sampling / "cut.jsonl").write_bytes(b"".join(lines[:complete]) + lines[complete][:torn])
    done = ask(sampling, "--input", "intents.jsonl", "--output", "cut.jsonl")
    assert done.returncode == 0 and (f"({complete} from before)" in done.stdout) == (complete > 0)
    assert (sampling / "cut.jsonl").read_bytes() == undisturbed


def test_ctrl_c_keeps_the_answers_and_the_same_command_resumes(sampling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = Generator.generate

    def interrupted(*arguments: Any, **options: Any) -> Iterator[Answer]:
        yield from itertools.islice(generate(*arguments, **options), 9)
        raise KeyboardInterrupt

    command = ["--input", "intents.jsonl", "--output", "stopped.jsonl"]
    with monkeypatch.context() as patch:
        patch.setattr(Generator, "generate", interrupted)
        done = ask(sampling, *command)
    assert done.returncode == 130 and "9 answers are in stopped.jsonl" in done.stderr
    assert ask(sampling, *command) == (0, "ask: 20 answers -> stopped.jsonl (9 from before)\n", "")
    assert (sampling / "stopped.jsonl").read_bytes() == (sampling / "complete.jsonl").read_bytes()


OTHER_ANSWERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "another model": (lambda folder: None, ["--base"]),
    "another adapter": (lambda folder: shutil.copytree(folder / "models/adapter", folder / "x"), ["--adapter", "x"]),
    "other params": (lambda folder: edit_params(folder, "max_new_tokens: 48 ", "max_new_tokens: 49 "), []),
    "another system message": (lambda folder: edit_params(folder, "instruction: Write step", "instruction: Say"), []),
    "other intents": (lambda folder: (folder / "intents.txt").write_text(f"\n{FERN}\n", encoding="utf-8"), []),
}


def test_other_answers_are_one_line_and_stay_as_they_are(workplace: Path, tmp_path: Path) -> None:
    (workplace / "intents.txt").write_text(f"{FERN}\n{VIOLIN}\n", encoding="utf-8")
    command = ["--input", "intents.txt", "--output", "answers.jsonl"]
    assert ask(workplace, *command).returncode == 0
    before = (workplace / "answers.jsonl").read_bytes()[:-20]  # torn, as by a kill
    (workplace / "answers.jsonl").write_bytes(before)
    for name, (change, arguments) in OTHER_ANSWERS.items():
        folder = Path(shutil.copytree(workplace, tmp_path / name))
        change(folder)
        done = ask(folder, *command, *arguments)
        assert is_one_error(done, "answers.jsonl: has answers of another model, params or intents"), name
        assert (folder / "answers.jsonl").read_bytes() == before


def test_other_content_is_never_overwritten_and_no_intents_make_no_file(finished: Path, tmp_path: Path) -> None:
    path, letter = tmp_path / "intents.jsonl", tmp_path / "letter"
    path.write_text(json.dumps({"intent": FERN}) + "\n", encoding="utf-8")
    letter.write_text("Dear Ann", encoding="utf-8")
    for output in (path, letter, tmp_path, letter / "answers.jsonl", Path(os.devnull)):
        assert is_one_error(ask(finished, "--input", path, "--output", output), f"{output}: ")
    done = ask(finished, "--input", "-", "--output", tmp_path / "new", stdin=b"\n \n")
    assert is_one_error(done, "got none")
    assert read(path) == [{"intent": FERN}] and letter.read_text(encoding="utf-8") == "Dear Ann"
    assert Path(os.devnull).is_char_device() and len(list(tmp_path.iterdir())) == 2


def test_another_adapter_that_fits_answers_with_a_note_if_it_names_another_base(
    finished: Path, tiny: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", lora_alpha=32, target_modules=["q_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(finished / "models/base"), config)
    known = [ask(finished, FERN).stdout, ask(finished, FERN, "--base").stdout]
    for base, has_note in {f"{tiny}/model": False, f"{finished}/models/base": False, "acme/chat-7b": True}.items():
        adapted.peft_config["default"].base_model_name_or_path = base
        adapted.save_pretrained(tmp_path / "other", save_embedding_layers=False)  # as another program does
        done = ask(finished, FERN, "--adapter", tmp_path / "other")
        assert done.returncode == 0 and (done.stderr.startswith("note: ") and base in done.stderr) == has_note
        assert done.stdout.strip() and done.stdout not in known


def test_an_adapter_with_another_chat_template_answers_with_a_note(workplace: Path) -> None:
    other = Path(shutil.copytree(workplace / "models/adapter", workplace / "other"))
    (other / "base_model.json").unlink()  # now it is one of another program
    config = {"chat_template": "{{ messages }}", "tokenizer_class": "PreTrainedTokenizerFast"}
    (other / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    done = ask(workplace, FERN, "--adapter", "other")
    assert done.returncode == 0 and done.stdout == ask(workplace, FERN).stdout
    assert done.stderr == "note: other has another chat template than models/base, whose template is used\n"
    shutil.copyfile(workplace / "models/base/chat_template.jinja", other / "chat_template.jinja")
    assert ask(workplace, FERN, "--adapter", "other").stderr == ""
