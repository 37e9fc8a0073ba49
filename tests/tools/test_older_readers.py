"""An exported folder has the old and the new names, and transformers 5 reads it as before."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from howto.tools.older_readers import add_old_names, chat_template, read_json
from tests.support.greedy_answers import ODD

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
BY_LAYER = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
}
LAYERS = ["sliding_attention", "full_attention"]
PHI3 = {"hidden_size": 32, "num_attention_heads": 4, "pad_token_id": None}
# A model_type, its new names, and the old names that must be beside them.
ROPES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("llama", {"rope_theta": 1e6}, {"rope_theta": 1e6, "rope_scaling": None}),
    "scaled": ("qwen2", {"rope_theta": 1e6, **YARN}, {"rope_theta": 1e6, "rope_scaling": YARN}),
    "partial": ("phi", {"rope_theta": 3e4, "partial_rotary_factor": 0.25}, {"partial_rotary_factor": 0.25}),
    "GPT-NeoX": (
        "gpt_neox",
        {"rope_theta": 3e4, "partial_rotary_factor": 0.5},
        {"rotary_emb_base": 3e4, "rotary_pct": 0.5},
    ),
    "Phi-3": (
        "phi3",
        {"rope_type": "longrope", "rope_theta": 3e4, "original_max_position_embeddings": 64, **LONG},
        {"rope_scaling": {"type": "longrope", **LONG}, "original_max_position_embeddings": 64},
    ),
    "Gemma 3": (
        "gemma3_text",
        BY_LAYER,
        {
            "rope_theta": 2e5,
            "rope_local_base_freq": 3e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}


@pytest.mark.parametrize("name", ROPES)
def test_rotary_positions_have_old_and_new_names_with_one_meaning(tmp_path: Path, name: str) -> None:
    kind, rope, old = ROPES[name]
    more = {"layer_types": LAYERS, "num_hidden_layers": 2} if kind == "gemma3_text" else {}
    more |= {**PHI3, "original_max_position_embeddings": 64} if kind == "phi3" else {}
    AutoConfig.for_model(kind, rope_parameters=rope, dtype="bfloat16", **more).save_pretrained(tmp_path)
    before, read_before = read_json(tmp_path / "config.json"), AutoConfig.from_pretrained(tmp_path).to_dict()
    add_old_names(tmp_path)
    after = read_json(tmp_path / "config.json")
    assert after.items() >= {**before, **old, "torch_dtype": "bfloat16"}.items()
    read_after = AutoConfig.from_pretrained(tmp_path).to_dict()
    read_after["rope_parameters"].pop("type", None)  # an older name of rope_type
    assert {key: read_after[key] for key in read_before} == read_before


def test_a_config_within_a_config_gets_them_too_and_code_that_is_not_there_is_not_named(tmp_path: Path) -> None:
    text = {"dtype": "float16", "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    config = {"auto_map": {"AutoConfig": "code.Config"}, "text_config": text, "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    add_old_names(tmp_path, tie_word_embeddings=False)
    old = {"rope_theta": 1e6, "rope_scaling": None, "torch_dtype": "float16"}
    expected = {"text_config": {**text, **old}, "hidden_size": 8, "tie_word_embeddings": False}
    assert read_json(tmp_path / "config.json") == expected


def read_by_5(folder: Path) -> list[Any]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [[tokenizer(text, add_special_tokens=special).input_ids for text in ODD] for special in (True, False)]
    names = [tokenizer.bos_token, tokenizer.eos_token, sorted(tokenizer.all_special_tokens)]
    return [*ids, *names, tokenizer.chat_template, tokenizer.model_input_names]


def with_prefix_space(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


TOKENIZERS: dict[str, tuple[Callable[[PreTrainedTokenizerBase], object], dict[str, Any]]] = {
    "plain": (lambda tokenizer: None, {}),
    "with more control tokens": (
        lambda tokenizer: tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|extra|>"]}),
        {"additional_special_tokens": ["<|im_start|>", "<|extra|>"]},
    ),
    "with tokens that take white space": (
        lambda tokenizer: tokenizer.add_tokens([AddedToken("<|extra|>", rstrip=True, lstrip=True, special=True)]),
        {},
    ),
    "with a space before the first word": (with_prefix_space, {"add_prefix_space": True}),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_of_transformers_5_gets_a_class_that_all_know_and_keeps_its_ids(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    change, old = TOKENIZERS[name]
    tokenizer = AutoTokenizer.from_pretrained(tiny / "model")
    change(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    shutil.copyfile(tiny / "model/config.json", tmp_path / "config.json")
    before, file = read_by_5(tmp_path), (tmp_path / "tokenizer.json").read_bytes()
    add_old_names(tmp_path)
    config = read_json(tmp_path / "tokenizer_config.json")
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    assert config.items() >= {**names, **old, "chat_template": tokenizer.chat_template}.items()
    assert "extra_special_tokens" not in config
    assert read_by_5(tmp_path) == before and (tmp_path / "tokenizer.json").read_bytes() == file


def test_a_class_that_changes_what_tokenizer_json_says_leaves_its_ids_in_the_file(tiny: Path, tmp_path: Path) -> None:
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", "▁", "a", "▁a"])}
    llama = LlamaTokenizer(vocab=vocabulary, merges=[("▁", "a")], legacy=True)
    llama.save_pretrained(tmp_path)  # and loses that it is a legacy one
    shutil.copyfile(tiny / "model/config.json", tmp_path / "config.json")
    before = AutoTokenizer.from_pretrained(tmp_path)("</s>a").input_ids
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path)("</s>a").input_ids != before
    add_old_names(tmp_path)
    for kind in (AutoTokenizer, PreTrainedTokenizerFast):
        assert kind.from_pretrained(tmp_path)("</s>a").input_ids == before


def test_the_chat_template_is_in_both_places_and_the_one_in_use_wins(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"chat_template": "old"}', encoding="utf-8")
    assert chat_template(tmp_path) == "old"
    add_old_names(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == '{"chat_template": "old"}'
    (tmp_path / "chat_template.jinja").write_text("new\n", encoding="utf-8")
    add_old_names(tmp_path)
    assert read_json(path) == {"chat_template": "new\n"}


def test_several_chat_templates_stay_as_they_are(tmp_path: Path) -> None:
    text = '{"chat_template": [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]}'
    (tmp_path / "tokenizer_config.json").write_text(text, encoding="utf-8")
    add_old_names(tmp_path)
    assert (tmp_path / "tokenizer_config.json").read_text(encoding="utf-8") == text
    assert not (tmp_path / "chat_template.jinja").exists()
