"""The `general` section of params.yaml."""

from typing import ClassVar

from pydantic import Field

from howto.core.config import Section


class General(Section):
    """`general`: what shows whether the fine-tuned model has forgotten anything."""

    key: ClassVar[str] = "general"
    text: str | None = Field(min_length=1)
    max_tokens: int = Field(ge=2)
    chat: str | None = Field(min_length=1)
    max_new_tokens: int = Field(ge=1)
