"""The `data` and `model` sections of a profile: where the rows and the base model come from."""

from __future__ import annotations

import math
import re
from collections import Counter
from datetime import date
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from howto.core.config import Section

Text = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
LONGEST_NAME = 50
NAME = re.compile(rf"\w[\w.-]{{0,{LONGEST_NAME - 1}}}")


class Source(Section):
    """A hub id (`owner/name`) or a local path, and which rows are taken from there.

    `config` and `split` select rows on the hub as `datasets.load_dataset` does. `file` is a file in the repository or
    folder, or a pattern for several. `share` is that of the training rows, where there are several sources.
    """

    source: Text
    revision: Text | None = None
    config: Text | None = None
    split: Text | None = None
    file: Text | None = None
    sha256: Sha256 | None = None
    share: Share | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Source:
        _check_selection({key for key, value in self if value is not None})
        return self


class Data(Section):
    """`data` of a profile: one source with the keys of `Source`, or `sources` with several of them by name.

    The keys that begin with `test_` are those of a source of held-out rows.
    """

    key: ClassVar[str] = "profiles.*.data"
    source: Text | None = None
    revision: Text | None = None
    config: Text | None = None
    split: Text | None = None
    file: Text | None = None
    sha256: Sha256 | None = None
    sources: dict[str, Source] | None = None
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
        if self.sources is None and self.source is None:
            raise ValueError("expected source, or sources with several by name, got neither. Add one.")
        if self.sources is not None:
            if single := sorted(given & Source.model_fields.keys()):
                raise ValueError(f"expected source or sources, got both ({single[0]}). Move it into one of sources.")
            _check_sources(self.sources)
        for prefix in ("", "test_"):
            _check_selection(given, prefix)
        return self

    def by_name(self) -> dict[str, Source]:
        """Return the sources in the order of their names, whatever it is in the file. "" names the only `source`."""
        if self.sources is not None:
            return dict(sorted(self.sources.items()))
        return {"": Source(**{key: value for key, value in self if key in Source.model_fields})}

    def test(self) -> Source | None:
        """Return the section of the held-out rows, if they have a source of their own."""
        values = {key.removeprefix("test_"): value for key, value in self if key.startswith("test_")}
        return Source(**values) if self.test_source else None


def _check_selection(given: set[str], prefix: str = "") -> None:
    """Raise ValueError if keys of a source contradict each other."""
    if prefix + "file" in given and given & {prefix + "config", prefix + "split"}:
        raise ValueError(f"{prefix}file excludes {prefix}config and {prefix}split. Remove one.")


def _check_sources(sources: dict[str, Source]) -> None:
    """Raise ValueError if there is no source, a name cannot be that of a folder, or the shares do not sum to 1."""
    if not sources:
        raise ValueError("sources: expected one or more, got none. Add one, or name a single source.")
    for name in sources:
        if not NAME.fullmatch(name):
            raise ValueError(
                f"sources: expected a name of up to {LONGEST_NAME} letters, digits, '.', '_' and '-', which names a "
                f"folder, got {name!r:.60}. Rename it."
            )
    if twice := [name for name, count in Counter(map(str.casefold, sources)).items() if count > 1]:
        raise ValueError(f"sources: expected names that differ in more than case, got {twice[0]} twice. Rename one.")
    shares = [source.share for source in sources.values() if source.share is not None]
    if shares and len(shares) < len(sources):
        without = next(name for name, source in sources.items() if source.share is None)
        raise ValueError(f"sources: expected a share for all or for none, got none for {without}. Add it.")
    if shares and not math.isclose(math.fsum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"sources: expected shares that sum to 1, got {math.fsum(shares):.6g}. Change them.")


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
