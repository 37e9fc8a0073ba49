"""Convert a GGUF file to a plain Hugging Face folder.

GGUF is llama.cpp's format for quantised models. transformers reads the file and dequantises its tensors; this module
names what it cannot read in one line, corrects the tokenizer where the file's splitting rule needs it, and measures
whether the result still knows English.
"""

from __future__ import annotations

import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from howto.core.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Values of `tokenizer.ggml.pre` for which llama.cpp splits off every digit before it splits words as GPT-2 does.
# transformers 5.23 splits these as GPT-2 alone, which changes the tokens around numbers.
SINGLE_DIGITS = frozenset({"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"})
GPT2_SPLITS = frozenset({"", "default", "gpt-2", "jais", "mpt", "olmo", "phi-2", "roberta-bpe"})
SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
KNOWN_SENTENCE = "The cat sat on the mat, looked at the door, and waited for someone to come home and open it."
UNLIKELY = 1000.0  # perplexity of KNOWN_SENTENCE above which a conversion is suspect; SmolLM2-135M has about 20


def convert_gguf(path: Path, folder: Path, precision: str, name: str) -> str:
    """Write the model in the GGUF file `path` as a Hugging Face folder and return a description of it.

    Args:
        path: the file.
        folder: an existing folder, which gets config, weights (safetensors), tokenizer and chat template.
        precision: "float32" or "bfloat16"; the dtype of the weights that are written.
        name: what messages call the file.

    Raises:
        UserError: the file is damaged, split, or of an architecture, tokenizer or quantisation that cannot be read.
    """
    if SHARD.search(path.name):
        raise UserError(f"{name}: one part of a split GGUF file. Merge the parts with `llama-gguf-split --merge`.")
    reader = _open(path, name)
    _hide_progress_bars_unless_in_a_terminal()
    architecture, quantisations = _text(reader, "general.architecture"), _quantisations(reader)
    import torch

    what = f"architecture {architecture or 'missing'}, {quantisations}"
    tokenizer = _load_tokenizer(path, _text(reader, "tokenizer.ggml.pre"), name, what)
    model = _load_model(path, getattr(torch, precision), name, what)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return f"{architecture}, {quantisations}, converted to {precision}, {model.num_parameters():,} parameters"


def check_english(folder: Path, name: str) -> tuple[float, str]:
    """Return the perplexity of a known sentence under the model in `folder`, and a warning or "".

    A conversion that mixes up heads or scales still writes a valid folder, but its perplexity is in the thousands.

    Raises:
        UserError: the perplexity is not a finite number, or the tokenizer does not give the sentence back.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    ids = tokenizer(KNOWN_SENTENCE, add_special_tokens=False).input_ids
    if tokenizer.decode(ids).strip() != KNOWN_SENTENCE:
        raise UserError(f"{name}: its tokenizer does not give back a plain English sentence. The file is damaged.")
    perplexity = sentence_perplexity(model, ids)
    if not math.isfinite(perplexity):
        raise UserError(f"{name}: the perplexity of a plain English sentence is {perplexity}. The weights are damaged.")
    if perplexity < UNLIKELY:
        return perplexity, ""
    return perplexity, (
        f"{name}: the perplexity of a plain English sentence is {perplexity:,.0f}, which a trained English model "
        "never has. If this model was trained on English, its conversion went wrong."
    )


def sentence_perplexity(model: PreTrainedModel, ids: list[int]) -> float:
    """Return exp of the mean negative log-likelihood, in nats, of `ids[1:]`, each given the tokens before it."""
    import torch

    tokens = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    return math.exp(min(float(loss), 700.0)) if math.isfinite(float(loss)) else float(loss)


def _hide_progress_bars_unless_in_a_terminal() -> None:
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # transformers dequantises under a bar of its own
        import transformers

        transformers.logging.disable_progress_bar()


def _open(path: Path, name: str) -> GGUFReader:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        end = max((int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors), default=0)
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        if unknown := re.search(r"(\d+)\)? is not a valid GGMLQuantizationType", str(error)):
            raise UserError(
                f"{name}: a quantisation (ggml type {unknown[1]}) that is not supported. Choose a file in F16, Q8_0, "
                "Q4_0, Q4_1, Q4_K or Q6_K."
            ) from None
        problem = "a git-lfs pointer" if path.read_bytes()[:8] == b"version " else str(error).splitlines()[0][:120]
        raise UserError(f"{name}: not a complete GGUF file ({problem}). Fetch the file again.") from None
    if not reader.tensors or end > path.stat().st_size:
        raise UserError(f"{name}: not a complete GGUF file (its weights are cut off). Fetch the file again.")
    return reader


def _text(reader: GGUFReader, key: str) -> str:
    field = reader.fields.get(key)
    return str(field.contents()) if field else ""


def _quantisations(reader: GGUFReader) -> str:
    """Return the types of the file's tensors, the most frequent first: "Q4_1 + F32 + Q8_0"."""
    types = [tensor.tensor_type.name for tensor in reader.tensors]
    return " + ".join(sorted(set(types), key=lambda one: (-types.count(one), one)))


def _read(kind: Any, path: Path, name: str, what: str, **more: Any) -> Any:
    """Let transformers read a tokenizer or a model (`kind`) out of a GGUF file.

    What it raises for a file that it does not understand is of any type, and is a fault of the file here.

    Raises:
        UserError: transformers cannot read the file.
    """
    try:
        return kind.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True, **more)
    except (ValueError, NotImplementedError, KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        if "allocate memory" in str(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise UserError(
            f"{name}: transformers cannot read this GGUF file ({what}): {reason}. Choose another model in params.yaml."
        ) from None


def _load_tokenizer(path: Path, splits: str, name: str, what: str) -> PreTrainedTokenizerBase:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _read(AutoTokenizer, path, name, what)
    if not tokenizer.chat_template:
        raise UserError(f"{name}: the file has no chat template. Choose a chat model in params.yaml.")
    if splits in SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
            ]
        )
    elif splits not in GPT2_SPLITS and not _is_split_by_transformers(splits):
        raise UserError(
            f"{name}: its tokenizer splits text by the rule {splits!r}, which transformers does not know, so its "
            "tokens would differ from those of its training. Choose another model in params.yaml."
        )
    return tokenizer


def _is_split_by_transformers(splits: str) -> bool:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # before transformers 5.20 no rule is known
        return False
    return splits in GGUF_PRE_TOKENIZER_SPLITS


def _dequantised() -> dict[str, Any]:
    """Return what `from_pretrained` needs to read plain weights.

    Left alone, transformers 5.23 keeps some architectures quantised, with a kernel that it looks for on the hub.
    """
    try:
        from transformers import GgufConfig
    except ImportError:  # releases without it, such as 5.17, always dequantise
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _load_model(path: Path, dtype: Any, name: str, what: str) -> PreTrainedModel:
    """Return the dequantised model, without the traces of its quantisation."""
    import torch
    from transformers import AutoModelForCausalLM

    read: PreTrainedModel = _read(AutoModelForCausalLM, path, name, what, dtype=dtype, **_dequantised())
    config = read.config
    for trace in ("quantization_config", "_name_or_path"):
        if hasattr(config, trace):
            delattr(config, trace)
    with torch.device("meta"):  # no weights of its own: it takes those that were read
        model = type(read)(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    return model.eval()
