"""Rows and answers for the tests of scores."""

from typing import Any

from howto.core.schema import Prediction, Row, input_of
from howto.evaluation.config import Evaluate

CONFIG = Evaluate(
    tokenizer="rouge_score",
    use_stemmer=True,
    confidence=0.95,
    resamples=500,
    seed=0,
    embedding_model=None,
    step_threshold=0.3,
)


def row(number: int, output: str = "x", *, intent: str = "do it", context: str = "", **fields: Any) -> Row:
    texts = {"input": input_of(intent, context), "context": context, "output": output}
    return Row(**{"id": str(number), "category": "c", "instruction": "i", **texts, **fields})


def prediction(number: int, text: str, seed: int = 0, tokens: int = 1, log_probability: Any = None) -> Prediction:
    """An answer that the model ended itself, unless it is empty."""
    return Prediction(
        id=str(number),
        seed=seed,
        text=text,
        prompt_tokens=1,
        new_tokens=1,
        stop="eos" if text else "length",
        reference_tokens=tokens,
        reference_log_probability=log_probability,
    )
