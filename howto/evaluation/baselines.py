"""Answers that need no model: what they score is the least that a score has to be laid beside."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from howto.core.schema import Row

AT_ONCE = 512  # test rows that are compared with all training rows at once
NAMES = ("echo_intent", "echo_context", "random_answer", "nearest_answer")


def floor_answers(rows: Sequence[Row], train: Sequence[Row], *, seed: int) -> list[dict[str, str]]:
    """For each test row the answers of those who know nothing of it, by their NAMES.

    They repeat the intent; repeat the context, else the intent; give the answer of a random training row; give that of
    the nearest training row.
    """
    chance = random.Random(f"random answer {seed}")
    nearest = nearest_rows([row.input for row in rows], [row.input for row in train])
    return [
        {
            "echo_intent": row.intent,
            "echo_context": row.context or row.intent,
            "random_answer": chance.choice(train).output,
            "nearest_answer": train[near].output,
        }
        for row, near in zip(rows, nearest, strict=True)
    ]


def nearest_rows(texts: Sequence[str], among: Sequence[str]) -> list[int]:
    """For each text the number of the one that is nearest to it, by the cosine of TF-IDF weights (scikit-learn).

    Of equally near ones the first; that is the very first where no word is shared.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32)
    try:
        known = vectorizer.fit_transform(among).T.tocsc()  # [words, texts]
    except ValueError:  # there is not a single word in them
        return [0] * len(texts)
    found: list[int] = []
    for start in range(0, len(texts), AT_ONCE):
        alike = vectorizer.transform(texts[start : start + AT_ONCE]) @ known  # [texts, texts], sparse
        found += np.asarray(alike.argmax(axis=1)).ravel().tolist()
    return found
