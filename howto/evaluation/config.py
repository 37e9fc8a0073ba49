"""The `evaluate` section of params.yaml."""

from typing import ClassVar, Literal

from pydantic import Field

from howto.core.config import Section

TokenizerName = Literal["rouge_score", "unicode"]


class Evaluate(Section):
    """`evaluate`: how answers are scored."""

    key: ClassVar[str] = "evaluate"
    tokenizer: TokenizerName
    use_stemmer: bool
    confidence: float = Field(gt=0, lt=1)
    resamples: int = Field(ge=100)
    seed: int = Field(ge=0)
    embedding_model: str | None = Field(min_length=1)
    step_threshold: float = Field(gt=0, le=1)
