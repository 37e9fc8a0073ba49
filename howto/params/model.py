"""The `model` section of a profile: where the base model comes from."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from howto.params.section import Section


class Model(Section):
    """`model` of a profile.

    `source` is `package:<module>/<file>.gguf`, a local Hugging Face folder or .gguf file, or a hub id (`owner/name`).
    `file` names a .gguf file in a hub repository or a local folder. `weights_sha256` is that of the weights' file.
    """

    key: ClassVar[str] = "profiles.*.model"
    source: str = Field(min_length=1)
    revision: str | None = Field(default=None, min_length=1)
    file: str | None = Field(default=None, pattern=r"\.gguf$")
    weights_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
