"""Turn texts into vectors, so that the cosine of two is their similarity in meaning."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from howto.core.errors import UserError, one_line

KEY = "params.yaml: evaluate.embedding_model"
PREFIX = "package:"
PACKAGES = {"wordllama": ("weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json")}


def similarities(model: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the cosine of each pair's embeddings, -1..1. Raises as `encode`."""
    texts = list({text for pair in pairs for text in pair})
    number_of = {text: number for number, text in enumerate(texts)}
    vectors = encode(model, texts)
    references, answers = (vectors[[number_of[pair[side]] for pair in pairs]] for side in (0, 1))
    cosines: list[float] = (references * answers).sum(axis=1).tolist()
    return cosines


def encode(model: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the texts' embeddings [texts, dimensions], of length 1, or 0 for a text without tokens.

    `model` is "package:wordllama", a folder of sentence-transformers (Reimers and Gurevych 2019, arXiv:1908.10084), or
    a hub id.

    Raise UserError if its package is not installed, or there is no such model.
    """
    if not texts:
        return np.empty((0, 0), dtype=np.float32)
    name = model.removeprefix(PREFIX)
    vectors = _static(name, texts) if model.startswith(PREFIX) else _sentence_transformers(model, texts)
    lengths: NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    return vectors / lengths


def _static(package: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """The mean of the vectors that an installed package ships for a text's tokens, in lower case."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    if package not in PACKAGES:
        raise UserError(f"{KEY}: expected {PREFIX}{' or '.join(PACKAGES)}, got {PREFIX + package!r}. Correct it.")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{KEY}: the package {package} is not installed. Run `pip install {package}`, or set null.")
    weights, tokenizer = (Path(spec.submodule_search_locations[0], file) for file in PACKAGES[package])
    (vectors,) = load_file(weights).values()  # [tokens, dimensions]
    vectors = vectors.astype(np.float32)
    encoded = Tokenizer.from_file(str(tokenizer)).encode_batch([t.lower() for t in texts], add_special_tokens=False)
    means = [vectors[one.ids].mean(axis=0) if one.ids else np.zeros(vectors.shape[1]) for one in encoded]
    return np.array(means, dtype=np.float32)


def _sentence_transformers(model: str, texts: Sequence[str]) -> NDArray[np.float32]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError(f"{KEY}: needs a package. Run `pip install sentence-transformers`, or set null.") from None
    try:
        encoder = SentenceTransformer(model, device="cpu", trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{KEY}: {model} cannot be loaded ({one_line(error)}). Name a folder or a hub id.") from None
    return np.asarray(encoder.encode(list(texts), show_progress_bar=None), dtype=np.float32)
