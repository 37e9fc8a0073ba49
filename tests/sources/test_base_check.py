"""A base that cannot be fine-tuned is refused by one line that says why, from its files alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AddedToken, AutoTokenizer, BertConfig, LlamaConfig, PreTrainedTokenizerBase, T5Config

from howto.core.errors import UserError
from howto.modeling.loading import load_base
from howto.sources.base_check import check_base, check_config
from tests.support.architectures import tokenizer, write_architecture

CONFIG: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised weights (quantization_config"),
        ({"quantization_config": {"load_in_4bit": True}}, "config.json: bitsandbytes)"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, "config.json: awq)"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "config.json: compressed-tensors)"),
        ({"model_type": "unheard-of"}, "transformers cannot read it"),
        ({"model_type": "unheard-of", "auto_map": {"AutoConfig": "a.B"}}, "names code in the repository (auto_map)"),
        ({"hidden_size": "many"}, "transformers cannot read it"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "got LlamaForSequenceClassification (model_type llama)",
        ),
        ({**T5Config().to_dict(), "architectures": ["T5ForConditionalGeneration"]}, "got T5ForConditionalGeneration"),
        ({"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}, "got an encoder-decoder"),
        ({**BertConfig().to_dict(), "architectures": ["BertForMaskedLM"]}, "got BertForMaskedLM"),
        ({"model_type": "siglip", "architectures": None}, "got SiglipConfig (model_type siglip)"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_another_kind_of_model_is_refused_by_its_configuration(
    changes: dict[str, Any], phrase: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
    with pytest.raises(UserError) as refused:
        check_config(tmp_path, "mine")
    assert str(refused.value).startswith("mine") and phrase in str(refused.value) and "\n" not in str(refused.value)


def test_code_in_a_repository_is_no_reason_if_transformers_has_the_architecture(tmp_path: Path) -> None:
    config = {**CONFIG, "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert isinstance(check_config(tmp_path, "mine"), LlamaConfig)


def with_tokens(*tokens: AddedToken) -> PreTrainedTokenizerBase:
    made = tokenizer()
    made.add_tokens(list(tokens))
    return made


def loaded(folder: Path, made: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_a_token_without_an_embedding_is_refused(tmp_path: Path, name: str, *, special: bool) -> None:
    write_architecture(tmp_path, name)
    check_base(tmp_path, loaded(tmp_path, tokenizer()), "mine")
    more = loaded(tmp_path, with_tokens(AddedToken("<more>", special=special)))
    with pytest.raises(UserError, match=r"mine: 1 of its .* '<more>' has id 99, and the embeddings have 99 rows"):
        check_base(tmp_path, more, "mine")


def test_embeddings_for_more_tokens_than_there_are_fit(tmp_path: Path) -> None:
    write_architecture(tmp_path, "llama", vocab_size=128)
    check_base(tmp_path, loaded(tmp_path, with_tokens(AddedToken("<more>", special=True))), "mine")


def test_a_token_that_only_a_class_of_transformers_adds_is_no_reason(tmp_path: Path) -> None:
    """Qwen2's class has <|endoftext|> for unknown words by default, which no text needs."""
    write_architecture(tmp_path, "qwen2")
    found = loaded(tmp_path, tokenizer())
    assert max(found.get_vocab().values()) == 99
    check_base(tmp_path, found, "mine")


def test_the_shape_of_the_weights_counts_not_that_of_the_configuration(tmp_path: Path) -> None:
    write_architecture(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:90].clone()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="vocab_size 99, but the embeddings have 90 rows"):
        check_base(tmp_path, loaded(tmp_path, tokenizer()), "mine")
    with pytest.raises(UserError, match="cannot read the model"):
        load_base(tmp_path, "float32", torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_if_the_configuration_says_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    write_architecture(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name].to(dtype)
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"quantised weights \\({name} has type"):
        check_base(tmp_path, loaded(tmp_path, tokenizer()), "mine")


def test_weights_that_are_missing_are_an_error_and_not_random_numbers(tmp_path: Path) -> None:
    write_architecture(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["lm_head.weight"], weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"the weights lack lm_head.weight and 1 more of LlamaForCausalLM"):
        load_base(tmp_path, "float32", torch.device("cpu"))
