"""Convert a GGUF file, llama.cpp's format for quantised models, to a plain Hugging Face folder.

transformers reads the file and dequantises its tensors. This module explains in one line what cannot be read, corrects
the tokenizer where the file's splitting rule needs it, and measures whether the result still models English.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from howto.core.errors import UserError, one_line

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Values of `tokenizer.ggml.pre` for which llama.cpp splits off every digit before it splits words as GPT-2 does.
# transformers 5.23 splits these as GPT-2 alone, which changes the tokens around numbers.
SINGLE_DIGITS = frozenset({"codeshell", "command-r", "exaone", "minerva-7b", "refact", "smollm", "starcoder"})
GPT2_SPLITS = frozenset({"", "default", "gpt-2", "jais", "mpt", "olmo", "phi-2", "roberta-bpe"})
SHARD = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
SENTENCE = "The cat sat on the mat, looked at the door, and waited for someone to come home and open it."
UNLIKELY = 1000.0  # perplexity of SENTENCE above which a conversion is suspect; SmolLM2-135M has about 20


def convert_gguf(path: Path, folder: Path, precision: str, name: str) -> str:
    """Write the model in the GGUF file `path` as a Hugging Face folder, and describe it.

    The existing `folder` gets config, weights (safetensors, of dtype `precision`: "float32" or "bfloat16"), tokenizer
    and chat template. `name` is the file's name in messages. Raise UserError if the file is damaged, split, or of an
    architecture, tokenizer or quantisation that cannot be read.
    """
    if SHARD.search(path.name):
        raise UserError(f"{name}: one part of a split GGUF file. Merge the parts with `llama-gguf-split --merge`.")
    reader = _open(path, name)
    import torch

    types = [tensor.tensor_type.name for tensor in reader.tensors]
    quantisations = " + ".join(sorted(set(types), key=lambda one: (-types.count(one), one)))  # the most frequent first
    architecture = _text(reader, "general.architecture")
    what = f"architecture {architecture or 'missing'}, {quantisations}"
    tokenizer = _load_tokenizer(path, _text(reader, "tokenizer.ggml.pre"), name, what)
    model = _load_model(path, getattr(torch, precision), name, what)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _drop_tokens_from(len(reader.fields["tokenizer.ggml.tokens"].data), folder / "tokenizer.json")
    return f"{architecture}, {quantisations}, converted to {precision}, {model.num_parameters():,} parameters"


def check_english(folder: Path, name: str) -> tuple[float, str]:
    """Return the perplexity of an English sentence under the model in `folder`, and a warning or "".

    A conversion that mixes up heads or scales still writes a valid folder, but its perplexity is in the thousands.
    Raise UserError if the perplexity is not a finite number, or the tokenizer does not give the sentence back.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    ids = tokenizer(SENTENCE, add_special_tokens=False).input_ids
    if tokenizer.decode(ids).strip() != SENTENCE:
        raise UserError(f"{name}: its tokenizer does not give back a plain English sentence. The file is damaged.")
    perplexity = sentence_perplexity(model, ids)
    if not math.isfinite(perplexity):
        raise UserError(f"{name}: the perplexity of a plain English sentence is {perplexity}. The weights are damaged.")
    warning = (
        f"{name}: the perplexity of a plain English sentence is {perplexity:,.0f}, too high for a trained model. "
        "If this model was trained on English, its conversion went wrong."
    )
    return perplexity, warning if perplexity >= UNLIKELY else ""


def sentence_perplexity(model: PreTrainedModel, ids: list[int]) -> float:
    """Return exp of the mean negative log-likelihood, in nats, of `ids[1:]`, each given the tokens before it."""
    import torch

    tokens = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        loss = float(model(input_ids=tokens, labels=tokens, use_cache=False).loss)
    return math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss


def _open(path: Path, name: str) -> GGUFReader:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        end = max((int(tensor.data_offset + tensor.n_bytes) for tensor in reader.tensors), default=math.inf)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        if unknown := re.search(r"(\d+)\)? is not a valid GGMLQuantizationType", str(error)):
            raise UserError(
                f"{name}: a quantisation (ggml type {unknown[1]}) that is not supported. Choose a file in F16, Q8_0, "
                "Q4_0, Q4_1, Q4_K or Q6_K."
            ) from None
        problem = "a git-lfs pointer" if path.read_bytes()[:8] == b"version " else one_line(error)
        raise UserError(f"{name}: not a complete GGUF file ({problem}). Fetch the file again.") from None
    if end > path.stat().st_size:
        raise UserError(f"{name}: not a complete GGUF file (its weights are cut off). Fetch the file again.")
    return reader


def _text(reader: GGUFReader, key: str) -> str:
    field = reader.fields.get(key)
    return str(field.contents()) if field else ""


def _read(kind: Any, path: Path, name: str, what: str, **options: Any) -> Any:
    """Let transformers read a tokenizer or a model (`kind`) from a GGUF file.

    For a file that it does not understand it raises errors of any type. Raise UserError if transformers cannot read the
    file.
    """
    try:
        return kind.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True, **options)
    except (ValueError, NotImplementedError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        if "allocate memory" in str(error):
            raise
        problem = f"transformers cannot read this GGUF file ({what}): {one_line(error)}"
        raise UserError(f"{name}: {problem}. Choose another model in params.yaml.") from None


def _load_tokenizer(path: Path, splits: str, name: str, what: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer. `splits` is the file's rule for splitting text into words, `tokenizer.ggml.pre`."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = _read(AutoTokenizer, path, name, what)
    if not tokenizer.chat_template:
        raise UserError(f"{name}: the file has no chat template. Choose a chat model in params.yaml.")
    if splits in SINGLE_DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    elif splits not in GPT2_SPLITS:
        try:
            from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as KNOWN
        except ImportError:  # before transformers 5.20
            KNOWN = {}
        if splits not in KNOWN:
            raise UserError(
                f"{name}: its tokenizer splits text by the rule {splits!r}, which transformers does not have, so its "
                "tokens would differ from those of its training. Choose another model in params.yaml."
            )
    return tokenizer


def _drop_tokens_from(count: int, path: Path) -> None:
    """Remove the tokens that the file does not have, which has `count`: transformers adds <|endoftext|> to any.

    They have no embedding.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = [token for token in values["added_tokens"] if token["id"] < count]
    if len(kept) < len(values["added_tokens"]):
        text = json.dumps({**values, "added_tokens": kept}, ensure_ascii=False, indent=2)
        path.write_text(text, encoding="utf-8")


def _load_model(path: Path, dtype: Any, name: str, what: str) -> PreTrainedModel:
    """Return the dequantised model, without the traces of its quantisation."""
    import torch
    import transformers

    # transformers 5.23 would keep some architectures quantised; releases without GgufConfig, such as 5.17, never do.
    gguf_config = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": gguf_config(dequantize=True)} if gguf_config else {}
    read: PreTrainedModel = _read(transformers.AutoModelForCausalLM, path, name, what, dtype=dtype, **options)
    config = read.config
    for trace in ("quantization_config", "_name_or_path"):
        if hasattr(config, trace):
            delattr(config, trace)
    with torch.device("meta"):  # without weights: it takes those that were read
        model = type(read)(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    return model.eval()
