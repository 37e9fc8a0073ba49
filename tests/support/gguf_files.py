"""Write a model as a GGUF file, as llama.cpp's converter does."""

import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTROL = 3  # llama.cpp's token type
FORMATS = ("F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str = "F32",
    architecture: str = "llama",
    splits: str = "smollm",
    template: bool = True,
) -> dict[str, NDArray[np.float32]]:
    """Write a Llama with its tokenizer, matrices in the format `kind`, and return the values that the file holds."""
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splits)
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if vocabulary[token] in tokenizer.all_special_ids else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_unk_token_id(tokenizer.unk_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template(str(tokenizer.chat_template))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    held = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        values = weight.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        number = next((count for part, count in heads.items() if part in name), 0)
        raw, stored = _stored(_permuted(values, number) if number else values, kind)
        writer.add_tensor(names.get_name(name, (".weight",)), raw, raw_dtype=stored)
        read = gguf.dequantize(raw, stored)
        held[name] = _permuted_back(read, number) if number else read
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _permuted(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reorder the rows of each head as llama.cpp's rotary embedding wants them: pairs in place of halves."""
    return values.reshape(heads, 2, len(values) // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def _permuted_back(values: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    return values.reshape(heads, len(values) // heads // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)


def _stored(values: NDArray[np.float32], kind: str) -> tuple[NDArray[np.generic], GGMLQuantizationType]:
    """Return a tensor as the file holds it. The Python library writes no K-quants, so their blocks are made up."""
    if values.ndim == 1 or kind == "F32":
        return np.ascontiguousarray(values), GGMLQuantizationType.F32
    stored = GGMLQuantizationType[kind]
    if kind not in ("Q4_K", "Q6_K"):
        return gguf.quantize(values, stored), stored
    block, size = gguf.GGML_QUANT_SIZES[stored]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (values.size // block, size), dtype=np.uint8)
    scale = np.array([1e-4, 1e-4], dtype=np.float16).view(np.uint8)
    where = slice(0, 4) if kind == "Q4_K" else slice(size - 2, size)  # the blocks' half-precision scales
    blocks[:, where] = scale[: where.stop - where.start]
    return blocks.reshape(len(values), -1), stored
