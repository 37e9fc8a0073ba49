"""Small models with random weights, for tests that need an architecture but no sensible answer."""

from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from howto.modeling.collate import Example
from howto.params import read_params
from howto.training.config import ProfileTrain, Train
from howto.training.lora import add_adapter

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
SETTINGS = {**SIZES, "max_position_embeddings": 512, "initializer_range": 0.3}
SHARED = read_params(Path(__file__).parents[2] / "params.yaml").section(Train)


def llama(vocabulary: int, *, key_value_heads: int = 4, tied: bool = False, seed: int = 0) -> PreTrainedModel:
    """Return a model built like TinyLlama; fewer heads for keys give grouped-query attention.

    `tied`: input embeddings and output head share one matrix, as in SmolLM2.
    """
    heads = {"num_key_value_heads": key_value_heads, "tie_word_embeddings": tied}
    return _model(LlamaConfig(vocab_size=vocabulary, **heads, **SETTINGS), seed)


def mistral(vocabulary: int, *, window: int) -> PreTrainedModel:
    """Return a model whose attention reaches `window` tokens back."""
    return _model(MistralConfig(vocab_size=vocabulary, num_key_value_heads=2, sliding_window=window, **SETTINGS))


def gemma2(vocabulary: int) -> PreTrainedModel:
    """Return a model whose attention caps its scores, and whose head caps its logits."""
    return _model(Gemma2Config(vocab_size=vocabulary, num_key_value_heads=2, **SETTINGS))


def gpt2(vocabulary: int) -> PreTrainedModel:
    """Return a model whose linear layers are GPT-2's Conv1D, and whose head is tied to the input embeddings."""
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.3}
    return _model(GPT2Config(vocab_size=vocabulary, bos_token_id=0, eos_token_id=1, **sizes))


def _model(config: PreTrainedConfig, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def adapted(model: PreTrainedModel, *, std: float = 0.2, **lora: object) -> PeftModel:
    """Put an adapter on a model, with random numbers in B so that it changes the outputs."""
    peft = add_adapter(model, SHARED.lora.model_copy(update=lora), Path("base"))
    for number, (name, weight) in enumerate(peft.named_parameters()):
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=std, generator=torch.Generator().manual_seed(number))
    return peft


def train_profile(**settings: object) -> ProfileTrain:
    """Return `profiles.<name>.train`: one step of 8 rows unless `settings` say otherwise."""
    rows = {"batch_size": 8, "micro_batch_size": 8, "gradient_checkpointing": False, "processes": 1, "fsdp": False}
    return ProfileTrain.model_validate({"steps": 1, "learning_rate": 1e-3, **rows, **settings})


def example_rows(count: int) -> list[Example]:
    """Return rows of growing lengths, of token ids below 50."""
    return [
        Example(str(n), [(7 * n + p) % 50 for p in range(3 + n)], [(3 * n + p) % 50 for p in range(2 + 2 * n)])
        for n in range(count)
    ]
