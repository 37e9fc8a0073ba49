"""Write a model folder so that older readers understand it too.

transformers 5 renamed keys in config.json and tokenizer_config.json. transformers 4, vLLM and llama.cpp's converter
know the old names. Where they find none they use a default without a word, such as a rope_theta of 10,000. A folder
from before transformers 5 needs no change, because transformers 5 knows both.
"""

import json
from pathlib import Path
from typing import Any

from howto.core.atomic import write_json

TEMPLATE, TOKENIZER, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"
# Old names of rope_theta and partial_rotary_factor, by model_type, where they are others.
ROPE_NAMES = {"gpt_neox": ("rotary_emb_base", "rotary_pct"), "gpt_neox_japanese": ("rotary_emb_base", "rotary_pct")}


def add_old_names(folder: Path, **changes: object) -> None:
    """Add the old names to the JSON files of a Hugging Face folder, and put the chat template into both its places.

    `changes` are further values for config.json. A file that already has everything keeps its bytes.
    """
    path = folder / "config.json"
    before = read_json(path)
    after = _with_old_names({**before, **changes})
    after.pop("auto_map", None)  # names code, which is not in the folder
    _write_if_changed(path, before, after)
    path = folder / TOKENIZER_CONFIG
    before = read_json(path)
    after = {**before}
    is_new = "backend" in before or before.get("tokenizer_class") == "TokenizersBackend"  # written by transformers 5
    if is_new and (folder / TOKENIZER).is_file():
        # This class reads tokenizer.json as it is. Others have defaults of their own in transformers 4, such as a BOS.
        after["tokenizer_class"] = "PreTrainedTokenizerFast"
        after |= _write_effective_tokenizer(folder)
    if isinstance(after.get("extra_special_tokens"), list):  # a mapping in transformers 4
        after["additional_special_tokens"] = after.pop("extra_special_tokens")
    after.pop("auto_map", None)
    if template := chat_template(folder):
        after["chat_template"] = template
        if not (folder / TEMPLATE).is_file():
            (folder / TEMPLATE).write_text(template, encoding="utf-8", newline="")
    _write_if_changed(path, before, after)


def _write_effective_tokenizer(folder: Path) -> dict[str, Any]:
    """Write tokenizer.json as transformers 5 applies it: some of its classes change what the file says.

    Return settings for tokenizer_config.json that transformers 4 would set otherwise if they were absent.
    """
    from transformers import AutoTokenizer

    path = folder / TOKENIZER
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    effective = json.loads(tokenizer.backend_tokenizer.to_str())
    if effective != read_json(path):
        tokenizer.backend_tokenizer.save(str(path))
    settings = {"model_input_names": tokenizer.model_input_names}
    if "add_prefix_space" in (splits := effective["pre_tokenizer"] or {}):
        settings["add_prefix_space"] = splits["add_prefix_space"]
    return settings


def chat_template(folder: Path) -> str | None:
    """Return the chat template of a Hugging Face folder, or None if it has none or several."""
    if (path := folder / TEMPLATE).is_file():
        return path.read_text(encoding="utf-8")
    template = read_json(folder / TOKENIZER_CONFIG).get("chat_template")
    return template if isinstance(template, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty without a file."""
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}


def _write_if_changed(path: Path, before: dict[str, Any], after: dict[str, Any]) -> None:
    if after != before:
        write_json(path, after)


def _with_old_names(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the old names beside the new ones, also in the configs within it."""
    config = {key: _with_old_names(value) if _is_config(key, value) else value for key, value in config.items()}
    if "dtype" in config:
        config.setdefault("torch_dtype", config["dtype"])
    by_layer = config.get("rope_parameters") or {}
    # A model with two kinds of layers has parameters for each. The old names are those of full attention.
    rope = by_layer.get("full_attention", by_layer)
    if "rope_theta" not in rope:
        return config
    theta, partial = ROPE_NAMES.get(str(config.get("model_type")), ("rope_theta", "partial_rotary_factor"))
    old = {theta: rope["rope_theta"]}
    if "partial_rotary_factor" in rope:
        old[partial] = rope["partial_rotary_factor"]
    if local := by_layer.get("sliding_attention"):
        old["rope_local_base_freq"] = local["rope_theta"]
    scaling = {key: value for key, value in rope.items() if key not in {"rope_theta", "partial_rotary_factor"}}
    if scaling.get("rope_type", "default") == "default":
        old["rope_scaling"] = None
    elif scaling["rope_type"] == "longrope":  # Phi-3 allows exactly these three in rope_scaling
        if "original_max_position_embeddings" in scaling:
            old["original_max_position_embeddings"] = scaling.pop("original_max_position_embeddings")
        old["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
    else:
        old["rope_scaling"] = scaling
    return {**old, **config}


def _is_config(key: str, value: object) -> bool:
    return key.endswith("_config") and isinstance(value, dict)
