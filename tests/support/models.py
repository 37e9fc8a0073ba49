"""Small models with random weights, for tests that need an architecture and not an answer."""

from __future__ import annotations

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, PreTrainedModel
from transformers import MistralForCausalLM as Mistral

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 512,
}


def llama(vocabulary: int, *, key_value_heads: int = 4, seed: int = 0) -> PreTrainedModel:
    """As TinyLlama is built, with its grouped-query attention if there are fewer heads for keys."""
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=vocabulary, num_key_value_heads=key_value_heads, initializer_range=0.3, **SIZES)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def mistral(vocabulary: int, *, window: int) -> PreTrainedModel:
    """Whose attention reaches `window` tokens back."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=vocabulary, num_key_value_heads=2, sliding_window=window, initializer_range=0.3, **SIZES
    )
    return Mistral(config).eval().requires_grad_(False)


def gemma2(vocabulary: int) -> PreTrainedModel:
    """Whose attention caps its scores, and whose head caps its logits."""
    torch.manual_seed(0)
    config = Gemma2Config(vocab_size=vocabulary, num_key_value_heads=2, initializer_range=0.3, **SIZES)
    return Gemma2ForCausalLM(config).eval().requires_grad_(False)
