"""A missing or damaged input ends a stage with one line, a non-zero exit status and no partial output."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.support.in_process import edit_params, run_here

BASE, ADAPTER = "models/base", "models/adapter"
RAW, TRAIN_ROWS, ANSWERS = "data/raw/rows/rows.jsonl", "data/prepared/train.jsonl", "data/predictions/adapter.jsonl"
OUTPUTS = {"prepare": "data/prepared/test.jsonl", "train": f"{ADAPTER}/adapter_model.safetensors",
           "infer": ANSWERS, "evaluate": "metrics/metrics.json"}  # fmt: skip


def remove(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def change(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(edit((folder / name).read_bytes()))

    return damage


def cut(name: str, size: int) -> Callable[[Path], None]:
    return change(name, lambda content: content[:-size])


def write(name: str, text: str) -> Callable[[Path], None]:
    return change(name, lambda _: text.encode())


def without_second_line(content: bytes) -> bytes:
    first, _, *others = content.splitlines(keepends=True)
    return b"".join([first, *others])


def with_another_row(content: bytes) -> bytes:
    answer = json.loads(content.splitlines()[0])
    return content + json.dumps({**answer, "id": "another"}).encode() + b"\n"


def adapter_of_another_shape(folder: Path) -> None:
    (folder / ADAPTER / "base_model.json").unlink()
    path = folder / ADAPTER / "adapter_model.safetensors"
    save_file({name: weight[..., :-1].copy() for name, weight in load_file(path).items()}, path)


def adapter_that_is_no_lora(folder: Path) -> None:
    from peft import IA3Config, get_peft_model
    from transformers import AutoModelForCausalLM

    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder / BASE), config).save_pretrained(folder / ADAPTER)


def adapter_of_zeros(folder: Path) -> None:
    path = folder / ADAPTER / "adapter_model.safetensors"
    save_file({name: weight * 0 for name, weight in load_file(path).items()}, path)


# The stage, what is damaged, and what the message names.
CASES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no raw folder": ("prepare", remove("data/raw"), "data/raw/rows: "),
    "no raw file": ("prepare", remove(RAW), "data/raw/rows: "),
    "a cut raw line": ("prepare", cut(RAW, 9), "rows.jsonl:120"),
    "too few raw rows": ("prepare", write(RAW, '{"instruction": "a", "response": "b"}\n'), "prepare.split"),
    "only empty rows": ("prepare", write(RAW, '{"instruction": "", "response": "b"}\n'), "empty_instruction"),
    "no base folder": ("train", remove(BASE), BASE),
    "no base config": ("train", remove(f"{BASE}/config.json"), f"{BASE}/config.json"),
    "a damaged base config": ("train", write(f"{BASE}/config.json", "{"), BASE),
    "no base weights": ("train", remove(f"{BASE}/model.safetensors"), BASE),
    "cut base weights": ("train", cut(f"{BASE}/model.safetensors", 100), BASE),
    "no tokenizer": ("train", remove(f"{BASE}/tokenizer.json"), BASE),
    "a damaged tokenizer": ("train", write(f"{BASE}/tokenizer.json", "{}"), BASE),
    "no training rows": ("train", remove(TRAIN_ROWS), TRAIN_ROWS),
    "an empty file of training rows": ("train", write(TRAIN_ROWS, ""), TRAIN_ROWS),
    "a cut training row": ("train", cut(TRAIN_ROWS, 9), f"{TRAIN_ROWS}:"),
    "no test rows": ("infer", remove("data/prepared/test.jsonl"), "data/prepared/test.jsonl"),
    "no adapter": ("infer", remove(ADAPTER), f"{ADAPTER}/adapter_config.json"),
    "a cut adapter": ("infer", cut(f"{ADAPTER}/adapter_model.safetensors", 100), ADAPTER),
    "a damaged adapter config": ("infer", write(f"{ADAPTER}/adapter_config.json", "{"), ADAPTER),
    "an adapter of another base": ("infer", write(f"{ADAPTER}/base_model.json", '{"weights_sha256": "0"}'), ADAPTER),
    "an adapter of another shape": ("infer", adapter_of_another_shape, ADAPTER),
    "an adapter that is no LoRA": ("infer", adapter_that_is_no_lora, ADAPTER),
    "an adapter that changes nothing": ("infer", adapter_of_zeros, ADAPTER),
    "no predictions": ("evaluate", remove(ANSWERS), ANSWERS),
    "a cut prediction": ("evaluate", cut(ANSWERS, 9), f"{ANSWERS}:"),
    "a missing prediction": ("evaluate", change(ANSWERS, without_second_line), ANSWERS),
    "a prediction of another row": ("evaluate", change(ANSWERS, with_another_row), ANSWERS),
}


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_input_ends_in_one_line_that_names_it_and_leaves_no_partial_output(
    name: str, workplace: Path
) -> None:
    stage, damage, place = CASES[name]
    damage(workplace)
    before = sorted(path.relative_to(workplace) for path in workplace.rglob("*"))
    output = workplace / OUTPUTS[stage]
    content = output.read_bytes() if output.exists() else None
    main = importlib.import_module(f"stages.{stage}").main
    done = run_here(main, workplace, *(["--stage", "adapter"] if stage == "infer" else []))
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and place in done.stderr
    assert sorted(path.relative_to(workplace) for path in workplace.rglob("*")) == before
    assert content is None or output.read_bytes() == content


@pytest.mark.parametrize("stage", ["fetch_model", "fetch_data", "prepare", "train", "infer", "evaluate"])
def test_a_wrong_param_stops_a_stage_before_it_writes_anything(stage: str, tmp_path: Path, small_params: str) -> None:
    (tmp_path / "params.yaml").write_text(small_params, encoding="utf-8")
    edit_params(tmp_path, "    r: 8 ", "    rank: 8 ")
    main = importlib.import_module(f"stages.{stage}").main
    done = run_here(main, tmp_path, *(["--stage", "base"] if stage == "infer" else []))
    assert done.returncode == 1 and "train.lora.rank" in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
