"""transformers 4.57 and 5 read an exported folder alike: the same token ids, the same greedy answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from howto.tools.cli import main
from tests.support import greedy_answers, older_transformers
from tests.support.in_process import run_here
from tests.support.models import adapted

Readings = tuple[list[list[int]], dict[str, Any], dict[str, Any]]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' + message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
USUAL = {**SIZES, "intermediate_size": 64, "max_position_embeddings": 512, "rope_theta": 1e6}
GROUPED = {**USUAL, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "sliding_window": 8}
SMALL_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.3}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
LONG = {"rope_type": "longrope", "rope_theta": 1e6, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
LAYERS = ["sliding_attention", "full_attention"]
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
}
GEMMA3 = {**GEMMA, "rope_theta": None, "rope_parameters": BY_LAYER, "layer_types": LAYERS, "tie_word_embeddings": False}
# A model_type, and settings other than the defaults of any reader.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", GROUPED),
    "Llama, head and embeddings adapted": ("llama", {**GROUPED, "tie_word_embeddings": True}),
    "Llama 3.1": ("llama", {**GROUPED, "rope_theta": None, "rope_parameters": LLAMA3}),
    "Qwen2": ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "Gemma 3": ("gemma3_text", GEMMA3),
    "Phi-3, long": ("phi3", {**GROUPED, "original_max_position_embeddings": 64, "rope_parameters": LONG}),
    "GPT-2, head adapted": ("gpt2", SMALL_GPT2),
    "GPT-NeoX": ("gpt_neox", {**USUAL, "rotary_emb_base": 50000, "rotary_pct": 0.5}),
    "Falcon": ("falcon", {**SIZES, "rope_theta": 1e6}),
}
DEFAULT = "SmolLM2"


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with a chat template, which puts a space before the first word."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|extra|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([greedy_answers.__doc__ or ""], trainer)
    more = {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|extra|>"]}
    return PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=CHAT_TEMPLATE, **TOKENS, **more)


def write_base(folder: Path, name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Save a model with random weights as transformers 5 does."""
    kind, settings = MODELS[name]
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings = {key: value for key, value in settings.items() if value is not None}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **settings, **ids, pad_token_id=ids["eos_token_id"])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_adapter(base: Path, folder: Path, name: str) -> PeftModel:
    """Save an adapter with random weights, and return the base with it."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    targets: Any = "all-linear"
    if "adapted" in name:
        targets = ["c_attn", "lm_head"] if "GPT-2" in name else ["q_proj", "embed_tokens", "lm_head"]
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets, init_lora_weights=False)
    model = get_peft_model(model, config)
    model.save_pretrained(folder, save_embedding_layers=False)
    return model.eval()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Beside other tests, threads of a model of this size mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def readings(
    one_thread: None, smollm2: Path, small_params: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Readings]:
    """Return for each model PEFT's own answers, and what transformers 4.57 and 5 make of the export.

    Skip where transformers 4.57 cannot be installed.
    """
    packages = tmp_path_factory.mktemp("packages")
    if problem := older_transformers.install(packages):
        pytest.skip(problem)
    root, tokenizer = tmp_path_factory.mktemp("models"), chat_tokenizer()
    expected, folders = {}, {}
    for number, name in enumerate([*MODELS, DEFAULT]):
        base, adapter = root / str(number) / "models/base", root / str(number) / "models/adapter"
        base.parent.mkdir(parents=True)
        (root / str(number) / "params.yaml").write_text(small_params, encoding="utf-8")
        if name == DEFAULT:
            base.symlink_to(smollm2)
            model = adapted(AutoModelForCausalLM.from_pretrained(base), std=0.02)
            model.peft_config["default"].base_model_name_or_path = str(base)
            model.save_pretrained(adapter, save_embedding_layers=False)
        else:
            write_base(base, name, tokenizer)
            model = write_adapter(base, adapter, name)
        expected[name] = [answer for _, answer in greedy_answers.answers(AutoTokenizer.from_pretrained(base), model)]
        assert run_here(main, root / str(number), "export").stderr == "", name
        folders[name] = str(root / str(number) / "models/exported")
    old = older_transformers.describe(list(folders.values()), packages)
    assert old["version"].startswith("4.57.") and transformers.__version__.startswith("5.")
    new = json.loads(json.dumps({folder: greedy_answers.describe(folder) for folder in folders.values()}))
    return {name: (expected[name], old[folder], new[folder]) for name, folder in folders.items()}


@pytest.mark.parametrize("name", [*MODELS, DEFAULT])
def test_both_give_the_token_ids_and_the_answers_of_the_adapter(readings: dict[str, Readings], name: str) -> None:
    expected, old, new = readings[name]
    assert old == new
    assert [answer for _, answer in new["answers"]] == expected
    assert len({tuple(answer) for answer in expected}) > 1
