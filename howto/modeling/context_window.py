"""How many tokens a model can take, and from which length on its attention changes, by its configuration."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from howto.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

UNLIMITED = sys.maxsize  # of models without positions: ALiBi, recurrent ones
LIMITS = ("max_position_embeddings", "max_seq_len", "max_sequence_length")
WINDOWS = re.compile(r"(?<!max_)window|chunk|local_attention|index_topk")


def context_window(config: PreTrainedConfig) -> int:
    """Return the number of tokens that prompt and answer may have together.

    Rotary positions of type `longrope` are scaled by the longest row of a pass once it exceeds the original window, so
    that rows would depend on each other; their window ends there. `yarn` may extend a window that the limit excludes.
    """
    text = config.get_text_config(decoder=True)
    window = min((value for name in LIMITS if (value := getattr(text, name, None))), default=UNLIMITED)
    scalings = getattr(text, "rope_parameters", None) or {}
    for scaling in [scalings, *scalings.values()]:  # one for all layers, or one for each type of layer
        if not isinstance(scaling, dict) or not (original := scaling.get("original_max_position_embeddings")):
            continue
        if scaling.get("rope_type") == "longrope":
            window = min(window, original)
        elif scaling.get("rope_type") == "yarn":
            window = max(window, int(original * scaling.get("factor", 1)))
    return int(window)


def exceeded_window(config: PreTrainedConfig, longest_row: int) -> int:
    """Return the length above which attention in rows of up to so many tokens is another: windows, chunks. Else 0."""
    found = config.get_text_config(decoder=True).to_dict().items()
    windows = [value for key, value in found if type(value) is int and WINDOWS.search(key)]
    return max((value for value in windows if 0 < value < longest_row), default=0)


def longest_prompt(window: int, max_new_tokens: int, max_prompt_tokens: int | None, base: Path) -> int:
    """Return the number of tokens that a prompt may have if an answer of `max_new_tokens` must fit behind it.

    Raise UserError if the answer leaves no room for a prompt.
    """
    if max_new_tokens >= window:
        raise UserError(
            f"params.yaml: infer.max_new_tokens: expected fewer than the {window:,} tokens that {base} can take, got "
            f"{max_new_tokens:,}, which leaves none for a prompt. Lower it there or under profiles.*.infer."
        )
    return min(max_prompt_tokens or window, window - max_new_tokens)
