"""`fetch_model` looks at the chat template, and puts the one of params.yaml in its place."""

import shutil
from pathlib import Path

import pytest

from howto.modeling.chat import PROBE
from howto.modeling.loading import load_chat
from tests.support import chats
from tests.support.in_process import Done, edit_params, run_stage_here

PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant: "


@pytest.fixture
def folder(workplace: Path) -> Path:
    """Return a folder in which the base is fetched from `model/`."""
    shutil.move(workplace / "models/base", workplace / "model")
    path = workplace / "params.yaml"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if line.startswith("      source: ") and "model" in line)
    lines[first] = "      source: ./model\n"
    path.write_text("".join(lines), encoding="utf-8")
    return workplace


def fetch(folder: Path, *, template: str | None = None, **settings: str) -> Done:
    if template is not None:
        (folder / "model/chat_template.jinja").write_text(template, encoding="utf-8")
    for key, value in settings.items():
        edit_params(folder, "      source: ./model\n", f"      source: ./model\n      {key}: {value}\n")
    return run_stage_here("fetch_model", folder)


def prompt(folder: Path) -> str:
    chat = load_chat(folder / "models/base")
    return str(chat.tokenizer.decode(chat.prompt_ids(PROBE)))


def test_a_model_without_a_template_is_refused_and_one_of_params_yaml_is_used(folder: Path) -> None:
    (folder / "model/chat_template.jinja").unlink()
    done = fetch(folder)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "./model: the tokenizer has no chat template" in done.stderr and "model.chat_template" in done.stderr
    (folder / "plain.jinja").write_text(PLAIN, encoding="utf-8")
    done = fetch(folder, chat_template="./plain.jinja")
    assert done.returncode == 0, done.stderr
    assert prompt(folder) == f"system: {PROBE.instruction}\nuser: {PROBE.input}\nassistant: "


def test_a_template_of_params_yaml_that_is_missing_or_fails_is_one_line(folder: Path) -> None:
    done = fetch(folder, chat_template="./none.jinja")
    assert done.returncode == 1 and "model.chat_template: ./none.jinja: No such file" in done.stderr
    (folder / "none.jinja").write_text("{{ messages[0]['content'] ", encoding="utf-8")
    done = run_stage_here("fetch_model", folder)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "./model: the chat template cannot be used" in done.stderr
    assert not (folder / "models/base").exists()


def test_a_template_without_a_system_role_is_named(folder: Path) -> None:
    done = fetch(folder, template=chats.SILENT)
    assert done.returncode == 0 and "note: the chat template has no system role" in done.stdout
    assert f"user\n{PROBE.instruction}\n\n{PROBE.input}" in prompt(folder)


def test_the_date_in_a_prompt_is_the_one_of_params_yaml(folder: Path) -> None:
    assert fetch(folder, template=chats.DATED).returncode == 0
    assert "Today: 26 Jul 2024, 2024-07-26" in prompt(folder)
    assert fetch(folder, date='"2025-01-02"').returncode == 0
    assert "Today: 02 Jan 2025, 2025-01-02" in prompt(folder)
