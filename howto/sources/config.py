"""The `data` and `model` sections of a profile: where the rows and the base model come from."""

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

    `key` is the parameter that names it. `config` and `split` select rows on the hub as `datasets.load_dataset` does.
    `file` is a file in the repository or folder, or a pattern for several. Without any, all files with rows are taken.
    """

    key: str
    source: str
    revision: str | None
    config: str | None
    split: str | None
    file: str | None
    sha256: str | None


class Data(Section):
    """`data` of a profile: a hub id (`owner/name`) or a local path. `test_source` names one for held-out rows."""

    key: ClassVar[str] = "profiles.*.data"
    source: Text
    revision: Text | None = None
    config: Text | None = None
    split: Text | None = None
    file: Text | None = None
    sha256: Sha256 | None = None
    test_source: Text | None = None
    test_revision: Text | None = None
    test_config: Text | None = None
    test_split: Text | None = None
    test_file: Text | None = None
    test_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Data:
        for key in ("revision", "config", "split", "file", "sha256"):
            if getattr(self, f"test_{key}") is not None and self.test_source is None:
                raise ValueError(f"test_{key} is given without test_source. Add that, or remove test_{key}.")
        for prefix in ("", "test_"):
            file, config, split = (getattr(self, prefix + key) for key in ("file", "config", "split"))
            if file and (config or split):
                raise ValueError(f"{prefix}file excludes {prefix}config and {prefix}split. Remove one.")
        return self

    def sources(self) -> dict[str, RowSource]:
        """Return where the "rows" come from, and the rows of "test" if these have a source of their own."""
        fields = ("source", "revision", "config", "split", "file", "sha256")
        prefixes = {"rows": "", "test": "test_"} if self.test_source else {"rows": ""}
        return {
            name: RowSource(f"data.{prefix}source", *(getattr(self, prefix + field) for field in fields))
            for name, prefix in prefixes.items()
        }


class Model(Section):
    """`model` of a profile.

    `source` is `package:<module>/<file>.gguf`, a local Hugging Face folder or .gguf file, or a hub id (`owner/name`).
    `file` names a .gguf file in a hub repository or a local folder. `weights_sha256` is that of the weights' file.
    """

    key: ClassVar[str] = "profiles.*.model"
    source: Text
    revision: Text | None = None
    file: str | None = Field(default=None, pattern=r"\.gguf$")
    weights_sha256: Sha256 | None = None
