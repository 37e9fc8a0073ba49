"""Similarity in meaning, by a sentence embedding: an extra, for those who name a model under `evaluate`."""

from __future__ import annotations

from collections.abc import Sequence

from howto.core.errors import UserError

KEY = "params.yaml: evaluate.embedding_model"


def similarities(model: str, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The cosine, -1..1, between the embeddings of each pair of texts (Reimers and Gurevych 2019, arXiv:1908.10084).

    `model` is a folder of sentence-transformers, or its id on the hub.

    Raises:
        UserError: the package is not installed, or there is no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer, util
    except ImportError:
        raise UserError(
            f"{KEY} wants a package that is an extra; `pip install sentence-transformers`, or set null"
        ) from None
    try:
        encoder = SentenceTransformer(model, device="cpu", trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"{KEY}: {model} cannot be loaded ({first[:120]}); name a folder or a model on the hub"
        ) from None
    texts = list({text for pair in pairs for text in pair})
    place = {text: number for number, text in enumerate(texts)}
    vectors = encoder.encode(texts, convert_to_tensor=True, show_progress_bar=None)
    ones, others = ([place[pair[side]] for pair in pairs] for side in (0, 1))
    return [float(value) for value in util.pairwise_cos_sim(vectors[ones], vectors[others])]
