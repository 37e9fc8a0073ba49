"""A missing or damaged input ends a stage with one line, a non-zero exit status and no partial output."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.kills import digest
from tests.support.in_process import edit_params, run_stage_here

BASE, ADAPTER = "models/base", "models/adapter"
RAW, ROWS, ANSWERS = "data/raw/rows/rows.jsonl", "data/prepared/train.jsonl", "data/predictions/adapter.jsonl"
Damage = Callable[[Path], Any]


def remove(name: str) -> Damage:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def change(name: str, edit: Callable[[bytes], bytes]) -> Damage:
    return lambda folder: (folder / name).write_bytes(edit((folder / name).read_bytes()))


def cut(name: str, size: int = 9) -> Damage:
    return change(name, lambda content: content[:-size])


def write(name: str, text: str) -> Damage:
    return change(name, lambda _: text.encode())


def change_weights(edit: Callable[[Any], Any]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / ADAPTER / "adapter_model.safetensors"
        save_file({name: edit(weight) for name, weight in load_file(path).items()}, path)

    return damage


def adapter_of_the_prompt(folder: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder / BASE), config).save_pretrained(folder / ADAPTER)


# The stage, what is damaged, and what the message names.
CASES: dict[str, tuple[str, Damage, str]] = {
    "no raw folder": ("prepare", remove("data/raw"), "data/raw/rows: "),
    "a cut raw line": ("prepare", cut(RAW), "rows.jsonl:120"),
    "too few raw rows": ("prepare", write(RAW, '{"instruction": "a", "response": "b"}\n'), "prepare.split"),
    "no base folder": ("train", remove(BASE), BASE),
    "a damaged base config": ("train", write(f"{BASE}/config.json", "{"), BASE),
    "no base weights": ("train", remove(f"{BASE}/model.safetensors"), BASE),
    "cut base weights": ("train", cut(f"{BASE}/model.safetensors", 100), BASE),
    "no tokenizer": ("train", remove(f"{BASE}/tokenizer.json"), BASE),
    "no training rows": ("train", remove(ROWS), ROWS),
    "an empty file of training rows": ("train", write(ROWS, ""), ROWS),
    "a cut training row": ("train", cut(ROWS), f"{ROWS}:"),
    "no test rows": ("infer@adapter", remove("data/prepared/test.jsonl"), "data/prepared/test.jsonl"),
    "no adapter": ("infer@adapter", remove(ADAPTER), f"{ADAPTER}/adapter_config.json"),
    "a cut adapter": ("infer@adapter", cut(f"{ADAPTER}/adapter_model.safetensors", 100), ADAPTER),
    "a damaged adapter config": ("infer@adapter", write(f"{ADAPTER}/adapter_config.json", "{"), ADAPTER),
    "an adapter of another base": (
        "infer@adapter",
        write(f"{ADAPTER}/base_model.json", '{"weights_sha256": "0"}'),
        ADAPTER,
    ),
    "an adapter that changes nothing": ("infer@adapter", change_weights(lambda weight: weight * 0), ADAPTER),
    "an adapter of another shape": ("infer@adapter", change_weights(lambda weight: weight[..., :-1].copy()), ADAPTER),
    "an adapter of the prompt": ("infer@adapter", adapter_of_the_prompt, ADAPTER),
    "no predictions": ("evaluate", remove(ANSWERS), ANSWERS),
    "a cut prediction": ("evaluate", cut(ANSWERS), f"{ANSWERS}:"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_input_ends_in_one_line_that_names_it_and_leaves_no_partial_output(
    name: str, workplace: Path
) -> None:
    stage, damage, place = CASES[name]
    damage(workplace)
    before = digest(workplace)
    done = run_stage_here(stage, workplace)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and place in done.stderr
    assert digest(workplace) == before


@pytest.mark.parametrize(
    "stage", ["fetch_model", "fetch_data", "prepare", "train", "infer@base", "general@base", "evaluate"]
)
def test_a_wrong_param_stops_a_stage_before_it_writes_anything(stage: str, tmp_path: Path, small_params: str) -> None:
    (tmp_path / "params.yaml").write_text(small_params, encoding="utf-8")
    edit_params(tmp_path, "    r: 8 ", "    rank: 8 ")
    done = run_stage_here(stage, tmp_path)
    assert done.returncode == 1 and "train.lora.rank" in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
