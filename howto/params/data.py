"""The `data` section of a profile: where the rows come from."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, RootModel, Tag

from howto.params.section import Section


class EmbeddedData(Section):
    """The corpus that the project makes itself."""

    source: Literal["embedded"]
    seed: int
    rows: int = Field(ge=1)


class OutsideData(Section):
    """Rows from the hub (`owner/name`, and the file in it) or from a local JSONL file."""

    source: str = Field(min_length=1)
    revision: str | None = None
    file: str | None = None
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


def _which(value: object) -> str:
    source = value.get("source") if isinstance(value, dict) else getattr(value, "source", None)
    return "embedded" if source == "embedded" else "outside"


class Data(
    RootModel[
        Annotated[
            Annotated[EmbeddedData, Tag("embedded")] | Annotated[OutsideData, Tag("outside")], Discriminator(_which)
        ]
    ]
):
    """`data` of a profile: the embedded corpus, or rows from outside."""

    key: ClassVar[str] = "profiles.*.data"
