"""The `data` section of a profile: where the rows come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from howto.core.config import Section

Text = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class RowSource:
    """One place that rows come from: a hub id (`owner/name`) or a local path, and what is taken from there.

    `key` is the parameter that names it. `file` is a file in the repository or folder, or a pattern for
    several; None takes all that hold rows.
    """

    key: str
    source: str
    revision: str | None
    file: str | None
    sha256: str | None


class Data(Section):
    """`data` of a profile: a hub id (`owner/name`) or a local path. `test_source` names one for held-out rows."""

    key: ClassVar[str] = "profiles.*.data"
    source: Text
    revision: Text | None = None
    file: Text | None = None
    sha256: Sha256 | None = None
    test_source: Text | None = None
    test_revision: Text | None = None
    test_file: Text | None = None
    test_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _test_has_a_source(self) -> Data:
        for key in ("test_revision", "test_file", "test_sha256"):
            if getattr(self, key) is not None and self.test_source is None:
                raise ValueError(f"{key} is given without test_source; add that, or remove {key}")
        return self

    def rows(self) -> RowSource:
        """Where the rows come from."""
        return RowSource("data.source", self.source, self.revision, self.file, self.sha256)

    def test(self) -> RowSource | None:
        """Where the held-out rows come from, unless they are taken from the others."""
        if self.test_source is None:
            return None
        return RowSource("data.test_source", self.test_source, self.test_revision, self.test_file, self.test_sha256)


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
