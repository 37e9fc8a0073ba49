"""Missing or damaged inputs end a stage with one line, a non-zero exit and no partial output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import run_stage

BASE, ADAPTER = "models/base", "models/adapter"
PREPARED = "data/prepared"


def remove(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def write(name: str, text: str | bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)

    return damage


def cut(name: str, size: int) -> Callable[[Path], None]:
    """Cut the last `size` bytes off."""

    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-size])

    return damage


def append(name: str, text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with (folder / name).open("a", encoding="utf-8") as file:
            file.write(text)

    return damage


def drop_line(name: str, number: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        lines = (folder / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(lines[: number - 1] + lines[number:]), encoding="utf-8")

    return damage


def adapter_of_another_base(folder: Path) -> None:
    (folder / ADAPTER / "base_model.json").write_text(json.dumps({"weights_sha256": "0" * 64}), encoding="utf-8")


def adapter_of_another_shape(folder: Path) -> None:
    (folder / ADAPTER / "base_model.json").unlink()
    path = folder / ADAPTER / "adapter_model.safetensors"
    save_file({name: weight[..., :-1].copy() for name, weight in load_file(path).items()}, path)


def adapter_of_another_kind(folder: Path) -> None:
    from peft import IA3Config, get_peft_model
    from transformers import AutoModelForCausalLM

    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[])
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder / BASE), config).save_pretrained(folder / ADAPTER)


def adapter_of_zeros(folder: Path) -> None:
    path = folder / ADAPTER / "adapter_model.safetensors"
    save_file({name: weight * 0 for name, weight in load_file(path).items()}, path)


TRAIN, INFER, EVALUATE = ["stages.train"], ["stages.infer", "--stage", "adapter"], ["stages.evaluate"]
OUTPUTS = {
    "stages.prepare": "data/prepared",
    "stages.train": ADAPTER,
    "stages.infer": "data/predictions/adapter.jsonl",
    "stages.evaluate": "metrics/metrics.json",
}

CASES: dict[str, tuple[list[str], Callable[[Path], None], str]] = {
    "prepare: no raw folder": (["stages.prepare"], remove("data/raw"), "data/raw/rows: no file in it. Make it with"),
    "prepare: no file in it": (["stages.prepare"], remove("data/raw/rows/rows.jsonl"), "data/raw/rows: no file"),
    "prepare: cut line": (
        ["stages.prepare"],
        cut("data/raw/rows/rows.jsonl", 9),
        ": not a JSON object (",
    ),
    "prepare: too few rows": (
        ["stages.prepare"],
        write("data/raw/rows/rows.jsonl", '{"instruction": "a", "response": "b"}\n'),
        "prepare.split: expected 24 rows or more, got 1",
    ),
    "prepare: only empty rows": (
        ["stages.prepare"],
        write("data/raw/rows/rows.jsonl", '{"instruction": "", "response": "b"}\n'),
        "data/raw/rows: no usable row (1 raw, 1 empty_instruction)",
    ),
    "train: no base folder": (TRAIN, remove(BASE), "models/base: no such folder"),
    "train: no config": (TRAIN, remove(f"{BASE}/config.json"), "models/base/config.json"),
    "train: damaged config": (TRAIN, write(f"{BASE}/config.json", "{"), "models/base"),
    "train: no weights": (TRAIN, remove(f"{BASE}/model.safetensors"), "models/base"),
    "train: cut weights": (TRAIN, cut(f"{BASE}/model.safetensors", 100), "models/base"),
    "train: no tokenizer": (TRAIN, remove(f"{BASE}/tokenizer.json"), "models/base"),
    "train: damaged tokenizer": (TRAIN, write(f"{BASE}/tokenizer.json", "{}"), "models/base"),
    "train: no prepared rows": (TRAIN, remove(f"{PREPARED}/train.jsonl"), "data/prepared/train.jsonl: not there"),
    "train: empty prepared file": (TRAIN, write(f"{PREPARED}/train.jsonl", ""), "data/prepared/train.jsonl: no rows"),
    "train: cut line": (TRAIN, cut(f"{PREPARED}/train.jsonl", 9), "data/prepared/train.jsonl:"),
    "infer: no test rows": (INFER, remove(f"{PREPARED}/test.jsonl"), "data/prepared/test.jsonl: not there"),
    "infer: no adapter": (INFER, remove(ADAPTER), "models/adapter/adapter_config.json: not there"),
    "infer: cut adapter": (INFER, cut(f"{ADAPTER}/adapter_model.safetensors", 100), "models/adapter"),
    "infer: damaged adapter config": (INFER, write(f"{ADAPTER}/adapter_config.json", "{"), "models/adapter"),
    "infer: adapter for another base": (INFER, adapter_of_another_base, "trained on another base model"),
    "infer: adapter of another shape": (INFER, adapter_of_another_shape, "does not fit models/base"),
    "infer: adapter that is no LoRA": (INFER, adapter_of_another_kind, "not a LoRA adapter"),
    "infer: adapter that changes nothing": (INFER, adapter_of_zeros, "changes nothing"),
    "evaluate: no predictions": (EVALUATE, remove("data/predictions/base.jsonl"), "data/predictions/base.jsonl: not"),
    "evaluate: cut predictions": (EVALUATE, cut("data/predictions/base.jsonl", 9), "data/predictions/base.jsonl:"),
    "evaluate: a prediction too few": (
        EVALUATE,
        drop_line("data/predictions/adapter.jsonl", 2),
        "have no answer of seed 0",
    ),
    "evaluate: a prediction too many": (
        EVALUATE,
        append(
            "data/predictions/adapter.jsonl",
            '{"id": "x", "seed": 0, "text": "", "prompt_tokens": 1, "new_tokens": 0, "stop": "eos", '
            '"reference_tokens": 1, "reference_log_probability": null}\n',
        ),
        "answers row x, which is not in",
    ),
    "show: no results": (["howto", "compare", "--rows", "1"], remove("log/hasil.jsonl"), "log/hasil.jsonl: not there"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_input_ends_in_one_line_and_leaves_no_partial_output(name: str, workplace: Path) -> None:
    arguments, damage, said = CASES[name]
    damage(workplace)
    before = sorted(path.relative_to(workplace) for path in workplace.rglob("*"))
    output = workplace / OUTPUTS[arguments[0]]
    content = output.read_bytes() if output.is_file() else None
    done = run_stage(workplace, *arguments)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert sorted(path.relative_to(workplace) for path in workplace.rglob("*")) == before
    assert content is None or output.read_bytes() == content


def test_a_wrong_param_stops_every_stage_before_it_does_anything(tmp_path: Path, small_params: str) -> None:
    (tmp_path / "params.yaml").write_text(small_params.replace("    r: 8 ", "    rank: 8 "), encoding="utf-8")
    for stage in ("fetch_model", "fetch_data", "prepare", "train", "infer", "evaluate"):
        arguments = ["--stage", "base"] if stage == "infer" else []
        done = run_stage(tmp_path, f"stages.{stage}", *arguments)
        assert done.returncode == 1
        assert "train.lora.rank: unknown key; is r meant?" in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
