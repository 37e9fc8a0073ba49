"""A PEFT adapter of this base is merged exactly, whatever its kind; one that cannot be merged is one line with why."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from howto.core.errors import UserError
from howto.modeling.adapters.adapter import load_adapter, merge_adapter
from tests.support.models import gpt2, llama

pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT has a warning for most of these kinds
VOCABULARY = 60
CAUSAL = {"task_type": "CAUSAL_LM"}
ATTENTION = {**CAUSAL, "target_modules": ["q_proj", "v_proj"]}
TOKENS = torch.arange(VOCABULARY)[None]


def tied_llama() -> PreTrainedModel:
    return llama(VOCABULARY, tied=True)


def tied_gpt2() -> PreTrainedModel:
    return gpt2(VOCABULARY)


def save(folder: Path, config: PeftConfig, model: PreTrainedModel | None = None, *, embeddings: bool = False) -> Path:
    """Save an adapter for `model` with random weights, as another program does."""
    adapted = get_peft_model(model or tied_llama(), config)
    for number, weight in enumerate(weight for weight in adapted.parameters() if weight.requires_grad):
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
        weight.data += 0.1 * noise.to(weight.dtype)
    adapted.peft_config["default"].base_model_name_or_path = "acme/chat-7b"
    adapted.save_pretrained(folder, save_embedding_layers=embeddings)
    return folder


def merged(folder: Path, make: Callable[[], PreTrainedModel] = tied_llama) -> PreTrainedModel:
    return merge_adapter(load_adapter(make(), folder, Path("models/base")), folder)


def lora(**settings: object) -> LoraConfig:
    return LoraConfig(**{**ATTENTION, **settings})


KINDS: dict[str, PeftConfig] = {
    "LoRA": lora(use_rslora=True, rank_pattern={"q_proj": 4}, alpha_pattern={"v_proj": 3}, layers_to_transform=[1]),
    "DoRA": lora(use_dora=True),
    "biases": lora(target_modules=["c_attn", "c_fc"], bias="all"),
    "biases of adapted layers": lora(target_modules=["c_attn", "c_proj"], bias="lora_only", fan_in_fan_out=True),
    "head": lora(target_modules=["q_proj", "lm_head"]),
    "embeddings": lora(target_modules=["q_proj", "embed_tokens"]),
    "head and embeddings": lora(target_modules=["embed_tokens", "lm_head"], use_dora=True),
    "head and embeddings, tied": lora(target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    "head of GPT-2": lora(target_modules=["c_attn", "lm_head"]),
    "saved head": lora(modules_to_save=["lm_head"]),
    "saved head and embeddings": lora(modules_to_save=["embed_tokens", "lm_head"]),
    "saved norm": lora(modules_to_save=["norm"]),
    "single tokens with LoRA": lora(trainable_token_indices=[5, 17]),
    "single tokens of head and embeddings": lora(trainable_token_indices={"lm_head": [5], "embed_tokens": [7]}),
    "single tokens": peft.TrainableTokensConfig(**CAUSAL, token_indices=[5, 59]),
    "weights by name": lora(target_modules=["v_proj"], target_parameters=["q_proj.weight"]),
    "AdaLoRA": peft.AdaLoraConfig(**ATTENTION, total_step=10),
    "LoHa": peft.LoHaConfig(**ATTENTION),
    "LoKr": peft.LoKrConfig(**ATTENTION),
    "OFT": peft.OFTConfig(**ATTENTION, oft_block_size=8),
    "VeRA": peft.VeraConfig(**ATTENTION, r=8),
    "IA3": peft.IA3Config(**CAUSAL, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "norms": peft.LNTuningConfig(**CAUSAL, target_modules=["input_layernorm"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_logits_are_those_of_pefts_own_model(tmp_path: Path, kind: str) -> None:
    make = tied_gpt2 if "c_attn" in (KINDS[kind].to_dict().get("target_modules") or ()) else tied_llama
    folder = save(tmp_path, KINDS[kind], make())
    found = merged(folder, make)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(make(), str(folder)).eval()(TOKENS).logits
        torch.testing.assert_close(found(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(expected, make()(TOKENS).logits, rtol=1e-2)
    head, embeddings = found.get_output_embeddings().weight, found.get_input_embeddings().weight
    assert found.config.tie_word_embeddings == (head is embeddings)
    assert (head is not embeddings) == any(word in kind for word in ("head", "embeddings"))


REFUSED: dict[str, tuple[PeftConfig, str]] = {
    "prompt tuning": (peft.PromptTuningConfig(**CAUSAL, num_virtual_tokens=4), "adds learnt tokens to the prompt"),
    "prefix tuning": (peft.PrefixTuningConfig(**CAUSAL, num_virtual_tokens=4), "PREFIX_TUNING"),
    "LLaMA-Adapter": (
        peft.AdaptionPromptConfig(**CAUSAL, adapter_len=4, adapter_layers=2),
        "adds learnt tokens to attention",
    ),
    "activated LoRA": (lora(alora_invocation_tokens=[4, 5]), "for a part of the prompt only"),
    "more layers": (lora(layer_replication=[(0, 2), (1, 2)]), "repeats layers"),
    "a bias that the base has no place for": (lora(lora_bias=True), "base layer has no bias"),
    "tokens of a head that has an adapter": (
        lora(target_modules=["lm_head"], trainable_token_indices=[5]),
        "other logits",
    ),
    "classification": (lora(task_type="SEQ_CLS"), "expected an adapter for CAUSAL_LM, got one for SEQ_CLS"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_adapter_that_cannot_be_merged_is_one_line_with_the_reason(tmp_path: Path, kind: str) -> None:
    config, reason = REFUSED[kind]
    folder = save(tmp_path, config)
    with pytest.raises(UserError, match=reason) as error:
        merged(folder)
    assert str(error.value).startswith(f"{folder}: ") and "\n" not in str(error.value)


def llama_of(vocabulary: int = VOCABULARY, **settings: int) -> PreTrainedModel:
    """Return a Llama that differs from the base in some of its sizes."""
    config = llama(vocabulary, tied=True).config
    for key, value in settings.items():
        setattr(config, key, value)
    return type(tied_llama())(config)


OTHER_BASES: dict[str, tuple[Callable[[], PreTrainedModel], PeftConfig, str]] = {
    "more layers": (lambda: llama_of(num_hidden_layers=3), lora(), "4 of its weights have no place there"),
    "fewer layers": (lambda: llama_of(num_hidden_layers=1), lora(), "no weights for some layers"),
    "wider": (lambda: llama_of(hidden_size=64), lora(), "size mismatch"),
    "GPT-2": (tied_gpt2, lora(target_modules=["c_attn"]), "c_attn.* not found"),
    "more tokens": (lambda: llama_of(70), lora(), "embed_tokens of 60 tokens, .* got 70"),
    "more tokens, adapted": (lambda: llama_of(70), lora(target_modules=["lm_head", "embed_tokens"]), "got 70"),
    "more tokens, saved": (lambda: llama_of(70), lora(modules_to_save=["lm_head"]), "of 60 tokens, .* got 70"),
}


@pytest.mark.parametrize("name", OTHER_BASES)
def test_an_adapter_of_another_base_is_one_line_that_names_that_base(tmp_path: Path, name: str) -> None:
    make, config, reason = OTHER_BASES[name]
    folder = save(tmp_path, config, make(), embeddings="tokens" in name)
    with pytest.raises(UserError, match=reason) as error:
        load_adapter(tied_llama(), folder, Path("models/base"))
    assert "made for acme/chat-7b" in str(error.value) and "\n" not in str(error.value)


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def edit_weights(folder: Path, edit: Callable[[str, torch.Tensor], tuple[str, torch.Tensor]]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(dict(edit(name, weight) for name, weight in load_file(path).items()), path)


def pickle_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickled": (pickle_weights, "adapter_model.bin. Pickled weights can run code"),
    "missing": (shutil.rmtree, "no such file"),
    "cut": (cut, "damaged"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("{"), "not the configuration of a PEFT"),
    "no kind": (lambda folder: edit_config(folder, peft_type=None), "does not know the kind None"),
    "a kind of the future": (lambda folder: edit_config(folder, peft_type="SUPER"), "does not know the kind SUPER"),
    "a wrong type": (lambda folder: edit_config(folder, r="eight"), "does not fit"),
    "a wrong pattern": (lambda folder: edit_config(folder, target_modules="("), "does not fit"),
    "other names": (
        lambda folder: edit_weights(folder, lambda name, weight: (name.replace("layers", "blocks"), weight)),
        "have no place there, such as .*blocks",
    ),
    "zero": (lambda folder: edit_weights(folder, lambda name, weight: (name, 0 * weight)), "changes nothing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_adapter_is_one_line(tmp_path: Path, name: str) -> None:
    damage, reason = DAMAGES[name]
    folder = save(tmp_path / "other", lora())
    damage(folder)
    with pytest.raises(UserError, match=reason) as error:
        load_adapter(tied_llama(), folder, Path("models/base"))
    assert re.match(rf"{folder}[/:]", str(error.value)) and "\n" not in str(error.value)


def test_a_setting_that_peft_does_not_know_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path, lora())
    edit_config(folder, use_magic=True, other_magic=None)
    load_adapter(tied_llama(), folder, Path("models/base"))
    note = capsys.readouterr().err
    assert note.startswith(f"note: {folder}/adapter_config.json: ") and note.count("\n") == 1
    assert "does not know use_magic, and ignores it" in note


def test_an_adapter_whose_lora_is_zero_but_which_saved_a_layer_is_not_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, lora(modules_to_save=["norm"]))
    edit_weights(folder, lambda name, weight: (name, 0 * weight if "lora_B" in name else weight))
    load_adapter(tied_llama(), folder, Path("models/base"))
