"""The lengths that a model can take come from its configuration, whatever the architecture calls them."""

from pathlib import Path

import pytest
from transformers import (
    BloomConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from howto.core.errors import UserError
from howto.modeling.context_window import UNLIMITED, context_window, exceeded_window, longest_prompt

LONG = {"rope_type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=4096), 4096),
        (GPT2Config(n_positions=256), 256),
        (OPTConfig(max_position_embeddings=128), 128),
        (MptConfig(max_seq_len=777), 777),
        (BloomConfig(), UNLIMITED),
        (MambaConfig(), UNLIMITED),
        (Gemma3Config(text_config=Gemma3TextConfig(max_position_embeddings=640)), 640),
        (Qwen2Config(max_position_embeddings=32768, rope_parameters=YARN), 131072),
        (Phi3Config(max_position_embeddings=131072, original_max_position_embeddings=4096, rope_parameters=LONG), 4096),
        (
            LlamaConfig(max_position_embeddings=99, rope_parameters={**LLAMA3, "original_max_position_embeddings": 9}),
            99,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PreTrainedConfig) else str(value),
)
def test_a_window_is_what_the_positions_allow(config: PreTrainedConfig, expected: int) -> None:
    assert context_window(config) == expected


def test_a_window_of_attention_counts_if_a_row_exceeds_it() -> None:
    config = MistralConfig(sliding_window=100)
    assert [exceeded_window(config, longest) for longest in (99, 100, 101)] == [0, 0, 100]
    two = Gemma3TextConfig(sliding_window=50, attention_chunk_size=200)
    assert [exceeded_window(two, longest) for longest in (60, 201)] == [50, 200]
    assert exceeded_window(MixtralConfig(num_local_experts=4, sliding_window=None), 1000) == 0
    assert exceeded_window(Qwen2Config(max_window_layers=28, sliding_window=None), 1000) == 0


def test_a_prompt_gets_what_the_answer_leaves_of_the_window() -> None:
    base = Path("models/base")
    assert longest_prompt(100, 30, None, base) == 70
    assert (longest_prompt(100, 30, 50, base), longest_prompt(100, 30, 90, base)) == (50, 70)
    assert longest_prompt(UNLIMITED, 30, 50, base) == 50
    assert longest_prompt(100, 99, None, base) == 1
    with pytest.raises(UserError, match=r"max_new_tokens: expected fewer than the 100 tokens .* got 100"):
        longest_prompt(100, 100, None, base)
