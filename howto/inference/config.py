"""The `infer` sections of params.yaml."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, ValidationError, model_validator

from howto.core.config import Section
from howto.core.errors import UserError

Count = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(gt=0, le=1)]
Penalty = Annotated[float, Field(ge=1, le=10)]
Ngram = Annotated[int, Field(ge=2)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
Strings = list[Annotated[str, Field(min_length=1)]]


class Infer(Section):
    """`infer`: how answers are decoded, the same for both models."""

    key: ClassVar[str] = "infer"
    max_new_tokens: Count
    max_prompt_tokens: Count | None
    temperature: Temperature
    top_p: Share
    top_k: Count | None
    repetition_penalty: Penalty
    no_repeat_ngram_size: Ngram | None
    stop: Strings
    seeds: Seeds

    @model_validator(mode="after")
    def _goes_together(self) -> Infer:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds holds a number twice")
        if self.temperature == 0 and len(self.seeds) > 1:
            raise ValueError("temperature 0 is greedy, and gives the same answer for each of several seeds; keep one")
        return self


class ProfileInfer(Section):
    """`profiles.<name>.infer`: the rows in flight, and what the profile decodes otherwise than `infer` says."""

    key: ClassVar[str] = "profiles.*.infer"
    batch_size: Count
    max_new_tokens: Count | None = None
    max_prompt_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    repetition_penalty: Penalty | None = None
    no_repeat_ngram_size: Ngram | None = None
    stop: Strings | None = None
    seeds: Seeds | None = None

    def decoding(self, shared: Infer) -> Infer:
        """`shared` with what this profile says otherwise.

        Raises:
            UserError: the two do not go together.
        """
        own = self.model_dump(exclude={"batch_size"}, exclude_none=True)
        try:
            return Infer.model_validate({**shared.model_dump(), **own})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"params.yaml: infer, as the profile's own infer has it: {reason}") from None
