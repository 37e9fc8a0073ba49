"""The `prepare` section of params.yaml."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from howto.params.section import Section


class Prepare(Section):
    """How raw rows become training rows, and how they are split."""

    key: ClassVar[str] = "prepare"
    instruction: str = Field(min_length=1)
    validation_share: float = Field(ge=0, lt=1)
    test_share: float = Field(gt=0, lt=1)
    split_seed: int

    @model_validator(mode="after")
    def _rows_are_left_for_training(self) -> Prepare:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave no row to train on; their sum must be below 1")
        return self
