"""The `data` and `model` sections of a profile: where the rows and the base model come from."""

from __future__ import annotations

from datetime import date
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from howto.core.config import Section

Text = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Data(Section):
    """`data` of a profile: a hub id (`owner/name`) or a local path, and which rows are taken from there.

    `config` and `split` select rows on the hub as `datasets.load_dataset` does. `file` is a file in the repository or
    folder, or a pattern for several. The keys that begin with `test_` do the same for held-out rows.
    """

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
        given = {key for key, value in self if value is not None}
        lonely = {key for key in given if key.startswith("test_")} if self.test_source is None else set()
        if lonely:
            raise ValueError(f"{min(lonely)} is given without test_source. Add that, or remove {min(lonely)}.")
        for prefix in ("", "test_"):
            if prefix + "file" in given and given & {prefix + "config", prefix + "split"}:
                raise ValueError(f"{prefix}file excludes {prefix}config and {prefix}split. Remove one.")
        return self

    def test(self) -> Data | None:
        """Return the section of the held-out rows, if they have a source of their own."""
        values = {key.removeprefix("test_"): value for key, value in self if key.startswith("test_")}
        return Data(**values) if self.test_source else None


def _day(value: object) -> object:
    try:
        return value if value is None else date.fromisoformat(value).isoformat()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f'expected a day such as "2024-07-26", in quotes, got {value!s:.40}') from None


class Model(Section):
    """`model` of a profile.

    `source` is `package:<module>/<file>.gguf`, a local Hugging Face folder or .gguf file, or a hub id (`owner/name`).
    `file` names a .gguf file in a hub repository or a local folder. `weights_sha256` is that of the weights' file.
    `chat_template` is a file that replaces the model's own chat template. `date` is what a template that puts in
    today's date gets instead.
    """

    key: ClassVar[str] = "profiles.*.model"
    source: Text
    revision: Text | None = None
    file: str | None = Field(default=None, pattern=r"\.gguf$")
    weights_sha256: Sha256 | None = None
    chat_template: Text | None = None
    date: Annotated[str | None, BeforeValidator(_day)] = None
