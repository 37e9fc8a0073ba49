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
NgramSize = Annotated[int, Field(ge=2)]
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
    no_repeat_ngram_size: NgramSize | None
    stop: Strings
    seeds: Seeds

    @model_validator(mode="after")
    def _check_seeds(self) -> Infer:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: expected distinct numbers")
        if self.temperature == 0 and len(self.seeds) > 1:
            raise ValueError("seeds: expected one, because temperature 0 gives the same answer for each")
        return self


class ProfileInfer(Section):
    """`profiles.<name>.infer`: the number of rows decoded at once, and overrides of `infer`."""

    key: ClassVar[str] = "profiles.*.infer"
    batch_size: Count
    max_new_tokens: Count | None = None
    max_prompt_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    repetition_penalty: Penalty | None = None
    no_repeat_ngram_size: NgramSize | None = None
    stop: Strings | None = None
    seeds: Seeds | None = None

    def decoding(self, shared: Infer) -> Infer:
        """Return `shared` with this profile's overrides.

        Raise UserError if the combination is invalid.
        """
        overrides = self.model_dump(exclude={"batch_size"}, exclude_none=True)
        try:
            return Infer.model_validate({**shared.model_dump(), **overrides})
        except ValidationError as error:
            raise UserError(f"params.yaml: profiles.*.infer with infer: {error.errors()[0]['ctx']['error']}") from None
