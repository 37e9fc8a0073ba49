"""Baselines: answers that need no model. A model that scores less has learnt less than they give for free."""

import random
from collections.abc import Sequence

import numpy as np

from howto.core.schema import Row
from howto.evaluation.config import TokenizerName
from howto.evaluation.tokenizers import TOKENIZERS

LABELS = {
    "echo_intent": "an echo of the intent",
    "echo_context": "an echo of the context or else the intent",
    "random_answer": "a random training answer",
    "nearest_answer": "the nearest training answer",
}
BATCH = 512  # test rows that are compared with all training rows at once


def baseline_answers(
    rows: Sequence[Row], train: Sequence[Row], *, seed: int, tokenizer: TokenizerName = "rouge_score"
) -> list[dict[str, str]]:
    """Return the baselines' answers to each test row, by the keys of LABELS."""
    chance = random.Random(f"random answer {seed}")
    nearest = nearest_rows([row.input for row in rows], [row.input for row in train], tokenizer)
    return [
        {
            "echo_intent": row.intent,
            "echo_context": row.context or row.intent,
            "random_answer": chance.choice(train).output,
            "nearest_answer": train[number].output,
        }
        for row, number in zip(rows, nearest, strict=True)
    ]


def nearest_rows(texts: Sequence[str], among: Sequence[str], tokenizer: TokenizerName = "rouge_score") -> list[int]:
    """Return for each text the number of the most similar one in `among`: cosine of TF-IDF weights (scikit-learn).

    Of equally similar ones it is the first. So it is 0 for a text that shares no word with any of them. Words are those
    of the tokenizer `unicode`, or else runs of two and more letters and digits, scikit-learn's default.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    analyzer = TOKENIZERS[tokenizer].words_of if tokenizer == "unicode" else "word"
    vectorizer = TfidfVectorizer(analyzer=analyzer, sublinear_tf=True, dtype=np.float32)
    try:
        weights = vectorizer.fit_transform(among).T.tocsc()  # [words, among]
    except ValueError:  # there is no word in any of them
        return [0] * len(texts)
    nearest: list[int] = []
    for start in range(0, len(texts), BATCH):
        cosines = vectorizer.transform(texts[start : start + BATCH]) @ weights  # [texts, among], sparse
        nearest += np.asarray(cosines.argmax(axis=1)).ravel().tolist()
    return nearest
