"""The `model` section of a profile: where the base model comes from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, RootModel, Tag, model_validator

from howto.params.section import Section


class EmbeddedModel(Section):
    """The small base model that the project trains itself."""

    source: Literal["embedded"]
    seed: int
    vocabulary: int = Field(ge=300, le=65_536)
    hidden_size: int = Field(ge=16)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    passes: int = Field(ge=1)
    learning_rate: float = Field(gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> EmbeddedModel:
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of 2 x heads")
        return self


class OutsideModel(Section):
    """A base model from the hub (`owner/name`) or from a local Hugging Face folder."""

    source: str = Field(min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    weights_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


def _which(value: object) -> str:
    source = value.get("source") if isinstance(value, dict) else getattr(value, "source", None)
    return "embedded" if source == "embedded" else "outside"


class Model(
    RootModel[
        Annotated[
            Annotated[EmbeddedModel, Tag("embedded")] | Annotated[OutsideModel, Tag("outside")], Discriminator(_which)
        ]
    ]
):
    """`model` of a profile: the embedded one, or one from outside."""

    key: ClassVar[str] = "profiles.*.model"
