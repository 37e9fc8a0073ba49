"""What a run costs is told before it runs: exactly where it can be, else as near as was measured."""

from __future__ import annotations

import ast
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import howto.batches
import howto.checkpoints
import howto.decoding
import howto.loss
import howto.memory
from howto import costs
from howto.adapter import add_adapter, save_adapter
from howto.batches import Example
from howto.embedded.base_model import CONTEXT as EMBEDDED_CONTEXT
from howto.engine import Engine
from howto.estimate import HEAVY, HEAVY_START, estimate, main
from howto.known import Told, find_out
from howto.memory import Kept
from howto.params.file import read_params
from howto.params.train import Lora, ProfileTrain, Train
from howto.shapes import (
    CONTEXT,
    Shape,
    adapter_bytes,
    published,
    read_config,
    shape_of,
    trainable,
)
from howto.slots import Slots, use_slots
from howto.speed import link_of, published_speed
from howto.stop import Stop
from howto.what_if import changed_params
from tests.conftest import ROOT
from tests.in_process import Done, edit_params, run_here

PARAMS = read_params(ROOT / "params.yaml")
SHARED = PARAMS.section(Train)
LORA = SHARED.lora
GROUPED = Shape(2, 64, 96, 4, 2, 16, 300, 2048, tied=False, stored="bfloat16")
RESULT = json.loads((ROOT / "benchmarks/results/estimate.json").read_text(encoding="utf-8"))


def model_of(shape: Shape, dtype: torch.dtype) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_size,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype)


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A folder in which nothing has been run."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    return tmp_path


@pytest.fixture(autouse=True)
def _no_cache_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))


def told(folder: Path, *arguments: str) -> Done:
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("COLUMNS", "120")
        return run_here(main, folder, *arguments)


# --- What is exact --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_and_the_file_of_the_weights_are_told_to_the_byte(tmp_path: Path, tied: bool) -> None:
    shape = Shape(2, 64, 96, 4, 2, 16, 300, 2048, tied=tied, stored="bfloat16")
    model = model_of(shape, torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert shape.parameters() == model.num_parameters()
    assert shape.file_bytes() == (tmp_path / "model.safetensors").stat().st_size
    assert read_config(tmp_path).linear() == shape.linear()


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"r": 16},
        {"dora": True},
        {"target_modules": ["q_proj", "v_proj"]},
        {"exclude_modules": ["down_proj"], "rank_pattern": {"k_proj": 2}},
        {"layers": [1]},
        {"init": "pissa"},
    ],
)
def test_the_adapter_is_told_to_the_byte(tmp_path: Path, other: dict[str, Any]) -> None:
    lora = Lora.model_validate({**LORA.model_dump(), **other})
    model = add_adapter(model_of(GROUPED, torch.float32), lora, tmp_path)
    initial = tmp_path / "initial" if lora.init == "pissa" else None
    if initial:
        save_adapter(model, initial)
    save_adapter(model, tmp_path / "adapter", initial)
    assert trainable(GROUPED, lora) == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert adapter_bytes(GROUPED, lora) == (tmp_path / "adapter/adapter_model.safetensors").stat().st_size


def test_published_shapes_have_the_published_numbers_of_parameters_and_bytes() -> None:
    models = {name: shape_of(config, name) for name, config in published("models").items()}
    parameters = {name: shape.parameters() for name, shape in models.items()}
    assert parameters["llama-2-7b"] == 6_738_415_616
    assert parameters["llama-3.1-8b"] == 8_030_261_248
    assert parameters["llama-3.1-70b"] == 70_553_706_496
    assert models["TinyLlama/TinyLlama-1.1B-Chat-v1.0"].file_bytes() == 2_200_119_864


@pytest.mark.parametrize(
    ("dtype", "rate"), [("float32", 0.05), ("float32", 0.0), ("bfloat16", 0.05), ("bfloat16", 0.0)]
)
def test_the_closed_formula_of_activations_is_what_training_measures(dtype: str, rate: float) -> None:
    precision = getattr(torch, dtype)
    shared = SHARED.model_copy(update={"lora": LORA.model_copy(update={"dropout": rate})})
    profile = PARAMS.section(ProfileTrain).model_copy(update={"micro_batch_size": 8, "gradient_checkpointing": False})
    examples = [Example("1", [5] * 300, [6] * 100)]
    model = add_adapter(model_of(GROUPED, precision), shared.lora, Path("base"))
    measured = Kept(Engine(model, examples, shared, profile, pad=2), examples).bytes_per_token(again=False)
    size = precision.itemsize
    # Kept adds the widest gradients and, of the response tokens (a quarter here), their hidden state and label.
    ours = costs.activation_bytes(GROUPED, shared.lora, size, dropout=rate > 0) + 4 * GROUPED.intermediate * size
    assert measured == pytest.approx(ours + (GROUPED.hidden * size + 8) / 4, rel=1e-9)


def test_keys_and_values_are_told_to_the_byte() -> None:
    model = model_of(GROUPED, torch.bfloat16).eval()
    with torch.inference_mode():
        assert use_slots(model, [5, 6, 7])
        slots = Slots(model, 3, 40)
        slots.enter([[5, 6, 7]], 0)
    held = sum(part.nbytes for pair in slots._layers.values() for part in pair)
    assert held == 3 * 40 * GROUPED.kv_bytes_per_token(2)


def test_what_is_repeated_here_so_that_torch_is_not_needed_is_what_the_others_have() -> None:
    ours = (costs.MARGIN, costs.OF_CHUNK, costs.CHUNK, costs.KEPT, costs.ENTERING, CONTEXT)
    assert ours == (
        howto.memory.MARGIN,
        howto.memory.OF_CHUNK,
        howto.loss.CHUNK,
        howto.checkpoints.KEPT,
        howto.decoding.ENTERING,
        EMBEDDED_CONTEXT,
    )


def test_the_embedded_run_is_told_to_the_row_and_its_disk_to_the_byte_before_it_runs(
    finished: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(finished / "params.yaml", fresh / "params.yaml")
    monkeypatch.chdir(fresh)
    known = find_out(read_params(), Told())
    assert known.shape == read_config(finished / "models/base")
    assert known.shape.file_bytes() == (finished / "models/base/model.safetensors").stat().st_size
    assert known.raw_bytes == (finished / "data/raw/rows/embedded.jsonl").stat().st_size
    run = json.loads((finished / "metrics/train.json").read_text(encoding="utf-8"))
    assert trainable(known.shape, LORA) == run["trainable_parameters"]
    adapter = finished / "models/adapter/adapter_model.safetensors"
    assert adapter_bytes(known.shape, LORA) == adapter.stat().st_size
    assert known.train.count == pytest.approx(run["rows"]["used"], rel=0.1)


# --- What is not ------------------------------------------------------------------------------------------


def ratios(beginning: str) -> Iterator[tuple[str, float]]:
    found = [(p["what"], p["ratio"]) for p in RESULT["points"] if p["what"].startswith(beginning)]
    assert found, beginning
    yield from found


def test_the_committed_comparison_is_within_the_factors_that_the_docs_state() -> None:
    for point in RESULT["points"]:
        assert point["ratio"] == pytest.approx(point["told"] / point["measured"], abs=6e-4)
        assert not point["exact"] or point["told"] == point["measured"], point
    for beginning, factor in {
        "train, ": 2.0,
        "infer, ": 2.0,
        "memory of ": 1.6,
        "disk of ": 1.5,
        "tokens of ": 1.3,
    }.items():
        for what, ratio in ratios(beginning):
            assert 1 / factor < ratio < factor, (what, ratio)


def test_more_of_anything_costs_more() -> None:
    rows, shape = costs.Rows(100, 200, 90), shape_of(published("models")["llama-15m"], "15m")
    work = costs.training_work(shape, LORA, rows, 4, again=False)
    longer = costs.training_work(shape, LORA, costs.Rows(100, 400, 180), 4, again=False)
    assert longer.flops > 2 * work.flops, "attention grows with the square of the length"
    assert costs.training_work(shape, LORA, rows, 4, again=True).flops > work.flops
    wide = LORA.model_copy(update={"r": 64})
    assert costs.training_work(shape, wide, rows, 4, again=False).flops > work.flops
    held = costs.training_memory(shape, LORA, 4, tokens=4096, response=2000, again=False)
    assert costs.training_memory(shape, LORA, 4, tokens=4096, response=2000, again=True) < held
    assert costs.training_memory(shape, LORA, 4, tokens=4096, response=2000, again=False, shards=8) < held


# --- The command ----------------------------------------------------------------------------------------


def test_a_published_model_is_told_from_nothing_and_gpus_are_said_not_to_be_measured(fresh: Path) -> None:
    done = told(fresh, "--set", "profile=tinyllama", "--device", "h100")
    assert done.returncode == 0, done.stderr
    assert "1,100,048,384 parameters, 6,307,840 of them trained; 15,011 rows" in done.stdout
    assert "1 x H100, not measured" in done.stdout and "GPU figures: NOT MEASURED" in done.stdout
    for stage in ("fetch_model", "fetch_data", "prepare", "train", "infer@base", "infer@adapter", "evaluate", "total"):
        assert f"\n{stage} " in done.stdout
    assert len(done.stdout.splitlines()) < 30, "one screen"
    assert sorted(path.name for path in fresh.iterdir()) == ["params.yaml"], "nothing is written"


def test_this_machine_is_measured(fresh: Path, small_params: str) -> None:
    (fresh / "params.yaml").write_text(small_params, encoding="utf-8")
    done = told(fresh)
    assert done.returncode == 0, done.stderr
    assert "measured just now on this CPU" in done.stdout and "GPU" not in done.stdout


def test_what_if(fresh: Path) -> None:
    edit_params(fresh, "\nprofile: embedded", "\nprofile: tinyllama")
    text = (fresh / "params.yaml").read_bytes()
    assert "6,307,840 of them trained" in told(fresh, "--device", "H100").stdout
    assert "50,462,720 of them trained" in told(fresh, "--device", "H100", "--rank", "64").stdout
    assert "50,462,720 of them trained" in told(fresh, "--device", "H100", "--set", "train.lora.r=64").stdout
    assert "1,000,000 rows" in told(fresh, "--device", "H100", "--rows", "1000000").stdout
    longer = told(fresh, "--device", "H100", "--tokens-per-row", "320", "--length", "1024").stdout
    assert "312 tokens each" in " ".join(longer.split())
    large = told(
        fresh, "--set", "profile=tinyllama", "--config", "llama-3.1-70b", "--device", "H100", "--gpus", "8"
    ).stdout
    assert (
        "sharded over 8 (FSDP)" in large
        and "infer does not fit on one H100 (178 GiB of 74.5 GiB): not even one row would" in " ".join(large.split())
    )
    alone = " ".join(told(fresh, "--config", "llama-3.1-8b", "--device", "H100").stdout.split())
    assert "train does not fit on 1 x H100: micro_batch_size: 8 would" in alone
    older = " ".join(told(fresh, "--config", "llama-2-7b", "--device", "H100").stdout.split())
    assert "infer does not fit on one H100 (110 GiB of 74.5 GiB): infer.batch_size: 128 would" in older
    smaller = ("--set", "profiles.*.train.micro_batch_size=8")
    assert "does not fit" not in told(fresh, "--config", "llama-3.1-8b", "--device", "H100", *smaller).stdout
    assert (fresh / "params.yaml").read_bytes() == text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "train.lora.rr=1"], "--set: train.lora.rr: unknown key"),
        (["--set", "train.lora.r=many"], "train.lora.r: "),
        (["--set", "profiles.embedded.train.learning_rate=abc"], "a valid number is wanted, not 'abc'"),
        (["--set", "train.lora.dropout=null"], "a valid number is wanted, not None"),
        (["--set", "train.lora.r=["], "--set train.lora.r=[: [ is not YAML"),
        (["--set", "train.nothing.r=1"], "write key=value, with a key of params.yaml"),
        (["--config", "nowhere.json"], "nowhere.json: not there; name a model's config.json, its folder, or one of: "),
        (["--device", "H99"], "--device H99: not known; choose this, or one of: H100, "),
    ],
)
def test_a_mistake_is_one_line(fresh: Path, arguments: list[str], said: str) -> None:
    done = told(fresh, *arguments)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done


def test_a_model_that_nobody_knows_asks_for_its_config(fresh: Path, tmp_path: Path) -> None:
    settings = (
        "--set",
        "profile=tinyllama",
        "--set",
        "profiles.tinyllama.model.source=someone/model",
        "--device",
        "L4",
    )
    done = told(fresh, *settings)
    assert done.returncode == 1 and "the shape of someone/model is not known before it is fetched" in done.stderr
    cached = Path(os.environ["HF_HOME"]) / "hub/models--someone--model/snapshots"
    revision = read_params(ROOT / "params.yaml").value("profiles.tinyllama.model.revision")
    model_of(GROUPED, torch.bfloat16).config.save_pretrained(cached / revision)
    assert f"{GROUPED.parameters():,} parameters" in told(fresh, *settings).stdout
    (cached / revision / "config.json").write_text('{"hidden_size": 8, "num_attention_heads": 2}', encoding="utf-8")
    assert "num_hidden_layers is None, and a number is wanted" in told(fresh, *settings).stderr
    with pytest.raises(Stop, match="mixture of experts"):
        shape_of({"num_local_experts": 8}, "config.json")


def test_rows_on_this_machine_are_counted(fresh: Path) -> None:
    (fresh / "rows.jsonl").write_text('{"instruction": "a", "response": "b"}\n' * 500, encoding="utf-8")
    settings = ["--set", "profile=tinyllama", "--device", "L4"]
    for key, value in {"source": "./rows.jsonl", "revision": "null", "file": "null", "sha256": "null"}.items():
        settings += ["--set", f"profiles.tinyllama.data.{key}={value}"]
    assert "500 rows" in told(fresh, *settings).stdout
    (fresh / "rows.jsonl").write_text('{"instruction": "a", "response": "b"}', encoding="utf-8")
    assert "1 rows" in told(fresh, *settings).stdout
    (fresh / "rows").mkdir()
    for name, rows in (("a", 10), ("b", 1000)):
        (fresh / f"rows/{name}.jsonl").write_text('{"instruction": "a", "response": "b"}\n' * rows, encoding="utf-8")
    folder = [*settings, "--set", "profiles.tinyllama.data.source=./rows"]
    assert "1,010 rows" in told(fresh, *folder).stdout
    assert " 10 rows" in told(fresh, *folder, "--set", "profiles.tinyllama.data.file=a.jsonl").stdout
    (fresh / "rows.parquet").write_bytes(b"PAR1 and no more")
    done = told(fresh, *settings, "--set", "profiles.tinyllama.data.source=./rows.parquet")
    assert done.returncode == 1 and "rows.parquet: not a Parquet file that can be read" in done.stderr


@pytest.mark.parametrize("flag", [["--tokens-per-row", "0"], ["--tokens-per-row", "nan"], ["--rows", "0.5"]])
def test_a_number_that_cannot_be_is_one_line_below_the_usage(fresh: Path, flag: list[str]) -> None:
    done = told(fresh, *flag)
    assert done.returncode == 2 and f"{flag[0]}: {flag[1]} is no" in done.stderr.splitlines()[-1]


def test_gpus_of_this_machine_have_a_link_and_a_base_can_be_sharded_over_them(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h100, other = published_speed("H100", "bfloat16"), link_of("NVIDIA Something 9")
    assert link_of("NVIDIA H100 80GB HBM3") == h100.link > other > 0
    monkeypatch.chdir(fresh)
    params = changed_params(
        [f"profiles.tinyllama.train.{one}" for one in ("processes=2", "fsdp=true")] + ["profile=tinyllama"]
    )
    stages = estimate(params, Told(), replace(h100, link=other), gpus=2, is_gpu=True).stages
    assert stages["train"].seconds > estimate(params, Told(), h100, gpus=2, is_gpu=True).stages["train"].seconds


def test_what_is_told_to_fit_is_what_the_stage_starts_with(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage wants a margin beside the weights and the adapter, and the estimate says so."""
    monkeypatch.chdir(fresh)
    params, h100 = changed_params(["profile=tinyllama"]), published_speed("H100", "bfloat16")
    held = estimate(params, Told(), h100, gpus=1, is_gpu=True).stages["train"].on_gpu
    for memory, fits in ((1.31 * held, True), (1.1 * held, False)):
        notes = estimate(params, Told(), replace(h100, memory=memory), gpus=1, is_gpu=True).notes
        assert any("train does not fit" in note for note in notes) != fits


def test_a_run_on_disk_is_believed_only_if_the_active_profile_made_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("params.yaml", "dvc.lock", "metrics/train.json", "metrics/data.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "data/prepared").mkdir(parents=True)
    (tmp_path / "data/prepared/train.jsonl").write_text("{}\n" * 4, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run = json.loads((tmp_path / "metrics/train.json").read_text(encoding="utf-8"))
    known = find_out(read_params(), Told())
    assert known.train.count == run["rows"]["used"]
    assert known.train.total * 4 == pytest.approx(run["tokens"])
    text = (tmp_path / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("rows: 2100", "rows: 210 "), encoding="utf-8")
    assert find_out(read_params(), Told()).train.count < 250
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "dvc.lock").write_text("<<<<<<<\n", encoding="utf-8")
    assert find_out(read_params(), Told()).train.count != run["rows"]["used"]


def test_the_whole_run_is_the_sum_of_its_stages(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh)
    made = estimate(read_params(), Told(), published_speed("A100", "float32"), gpus=1, is_gpu=True)
    total = made.total()
    assert total.seconds == sum(stage.seconds for stage in made.stages.values())
    assert total.on_gpu == max(stage.on_gpu for stage in made.stages.values())


def test_gpus_share_the_answers_of_many_rows(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh)
    params, speed = changed_params(["profile=tinyllama"]), published_speed("H100", "bfloat16")
    one, eight = (estimate(params, Told(rows=1_000_000), speed, gpus=gpus, is_gpu=True).stages for gpus in (1, 8))
    for name in ("infer@base", "infer@adapter"):
        assert eight[name].seconds - HEAVY_START == pytest.approx((one[name].seconds - HEAVY_START) / 8, rel=0.01)
        assert eight[name].on_gpu == one[name].on_gpu and eight[name].disk == one[name].disk


def test_memory_of_a_host_is_that_of_all_its_processes(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fresh)
    monkeypatch.delenv("PET_NNODES", raising=False)
    params, h100 = changed_params(["profile=tinyllama"]), published_speed("H100", "bfloat16")
    eight, four = (estimate(params, Told(), h100, gpus=8, is_gpu=True, here=here).stages for here in (8, 4))
    weights = find_out(params, Told()).shape.parameters() * 2
    for name in ("train", "infer@base", "infer@adapter"):
        assert eight[name].memory == 8 * (HEAVY + weights) == 2 * four[name].memory
    changed = [f"profiles.embedded.train.{one}" for one in ("processes=4", "micro_batch_size=1")]
    cpu = replace(h100, memory=0.0)
    alone, all_ = (
        estimate(changed_params(settings), Told(), cpu, gpus=1, is_gpu=False).stages
        for settings in (changed[1:], changed)
    )
    assert all_["train"].memory == pytest.approx(4 * alone["train"].memory)
    assert all_["infer@base"].memory == alone["infer@base"].memory


def test_gpus_that_are_not_there_are_not_passed_over_in_silence(fresh: Path) -> None:
    done = told(fresh, "--gpus", "4")
    assert done.returncode == 2 and "name one with --device" in done.stderr.splitlines()[-1]


def test_no_stage_depends_on_it() -> None:
    ours = {"estimate", "estimate_table", "doctor", "known", "costs", "shapes", "speed", "finding", "hub_cache"}
    for path in [*(ROOT / "stages").glob("*.py"), *(ROOT / "howto/embedded").glob("*.py")]:
        imported = {
            node.module.rpartition(".")[2]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and node.module
        }
        assert not imported & ours, path
