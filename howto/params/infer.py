"""The `infer` sections of params.yaml."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from howto.params.section import Section


class Infer(Section):
    """`infer`: the same for all profiles and for both models."""

    key: ClassVar[str] = "infer"
    max_new_tokens: int = Field(ge=1)


class ProfileInfer(Section):
    """`profiles.<name>.infer`."""

    key: ClassVar[str] = "profiles.*.infer"
    batch_size: int = Field(ge=1)
