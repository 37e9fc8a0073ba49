"""The shape of a Llama-like model, and what follows from it exactly: weights, adapter, files, keys and values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from howto.params.model import EmbeddedModel
from howto.params.train import Lora
from howto.stop import Stop

PUBLISHED = Path(__file__).with_name("published.yaml")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SAFETENSORS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
CONTEXT = 1024  # positions that the embedded model declares

Tensors = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's kind: rotary positions, a gated MLP, RMS norms, no biases."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int  # positions
    tied: bool  # the output's matrix is that of the embeddings
    stored: str  # dtype of the weights in their file

    def linear(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear maps of a layer, by the names that LoRA's target_modules go by."""
        wide, narrow = self.heads * self.head_size, self.kv_heads * self.head_size
        return {
            "self_attn.q_proj": (self.hidden, wide),
            "self_attn.k_proj": (self.hidden, narrow),
            "self_attn.v_proj": (self.hidden, narrow),
            "self_attn.o_proj": (wide, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }

    def in_layers(self) -> int:
        """Weights in the matrices of all layers: each is used once for a token."""
        return self.layers * sum(a * b for a, b in self.linear().values())

    def in_head(self) -> int:
        """Weights in the output's matrix: used once for each token whose logits are wanted."""
        return self.vocabulary * self.hidden

    def tensors(self) -> Tensors:
        """Every weight in the file."""
        found: Tensors = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        if not self.tied:
            found["lm_head.weight"] = (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            found |= {f"{at}.{name}.weight": (b, a) for name, (a, b) in self.linear().items()}
            found |= {f"{at}.{name}.weight": (self.hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        return found

    def parameters(self) -> int:
        """All weights."""
        return sum(map(_count, self.tensors().values()))

    def file_bytes(self) -> int:
        """Of model.safetensors."""
        return safetensors_bytes(self.tensors(), self.stored)

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Keys and values of one token in all layers."""
        return self.layers * 2 * self.kv_heads * self.head_size * itemsize


def adapter_tensors(shape: Shape, lora: Lora) -> Tensors:
    """The weights of the adapter: A [r, in] and B [out, r] of each layer that gets one (Hu et al. 2021)."""
    found: Tensors = {}
    for layer in range(shape.layers) if lora.layers is None else lora.layers:
        for name, (wide, out) in shape.linear().items():
            if adapted(name, lora):
                rank = next((r for key, r in lora.rank_pattern.items() if _is(name, key)), lora.r)
                rank *= 2 if lora.init in ("olora", "pissa") else 1  # saved as the difference from how it began
                at = f"base_model.model.model.layers.{layer}.{name}"
                found |= {f"{at}.lora_A.weight": (rank, wide), f"{at}.lora_B.weight": (out, rank)}
                if lora.dora:
                    found[f"{at}.lora_magnitude_vector"] = (out,)
    return found


def adapted(name: str, lora: Lora) -> bool:
    """Whether the linear map of this name gets an adapter."""
    named = lora.target_modules == "all-linear" or any(_is(name, key) for key in lora.target_modules)
    return named and not any(_is(name, key) for key in lora.exclude_modules or [])


def trainable(shape: Shape, lora: Lora) -> int:
    """Weights that are trained."""
    saved = sum(map(_count, adapter_tensors(shape, lora).values()))
    return saved // 2 if lora.init in ("olora", "pissa") else saved


def adapter_bytes(shape: Shape, lora: Lora) -> int:
    """Of adapter_model.safetensors, which is float32 whatever the base is."""
    return safetensors_bytes(adapter_tensors(shape, lora), "float32")


def safetensors_bytes(tensors: Tensors, dtype: str) -> int:
    """The size of a file with these tensors, header and all: https://github.com/huggingface/safetensors#format."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(tensors):
        start, end = end, end + _count(tensors[name]) * BYTES[dtype]
        header[name] = {"dtype": SAFETENSORS[dtype], "shape": list(tensors[name]), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + end


def embedded_shape(model: EmbeddedModel) -> Shape:
    """The shape of the model that the project makes itself (as `howto.embedded.base_model` does)."""
    return Shape(
        layers=model.layers,
        hidden=model.hidden_size,
        intermediate=round(model.hidden_size * 8 / 3 / 32) * 32,
        heads=model.heads,
        kv_heads=model.heads,
        head_size=model.hidden_size // model.heads,
        vocabulary=model.vocabulary,
        context=CONTEXT,
        tied=True,
        stored="float32",
    )


def shape_of(config: Mapping[str, Any], said: str) -> Shape:
    """The shape that a config.json tells. `said` names it in messages.

    Raises:
        Stop: it lacks a number that is needed, or is of a kind whose costs are not told here.
    """
    if any("expert" in key for key in config):
        raise Stop(f"{said}: a mixture of experts, whose costs are not told here; take a dense model")

    def number(key: str, otherwise: int | None = None) -> int:
        value = config.get(key)
        value = otherwise if value is None else value
        if type(value) is not int or value < 1:
            raise Stop(
                f"{said}: {key} is {value!r}, and a number is wanted; costs are told for Llama-like models alone"
            )
        return value

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return Shape(
        layers=number("num_hidden_layers"),
        hidden=hidden,
        intermediate=number("intermediate_size"),
        heads=heads,
        kv_heads=number("num_key_value_heads", heads),
        head_size=number("head_dim", hidden // heads),
        vocabulary=number("vocab_size"),
        context=number("max_position_embeddings", 2**31),
        tied=bool(config.get("tie_word_embeddings", False)),
        stored=stored if stored in BYTES else "float32",
    )


def read_config(path: Path) -> Shape:
    """The shape in a config.json, or in the folder that holds one.

    Raises:
        Stop: there is none, or it is none.
    """
    path = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Stop(
            f"{path}: not there; name a model's config.json, its folder, or one of: {', '.join(names())}"
        ) from None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise Stop(f"{path}: not a JSON object; name a model's config.json")
    return shape_of(config, str(path))


def published(kind: str) -> dict[str, dict[str, Any]]:
    """What published.yaml says of "models", "data" or "gpus"."""
    from ruamel.yaml import YAML

    found = YAML(typ="safe", pure=True).load(PUBLISHED.read_text(encoding="utf-8"))
    return dict(found[kind])


def names() -> list[str]:
    """The models whose shapes are published."""
    return list(published("models"))


def _is(name: str, key: str) -> bool:
    return name == key or name.endswith(f".{key}")


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
