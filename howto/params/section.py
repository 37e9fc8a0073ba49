"""What every section of params.yaml has in common."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of params.yaml whose keys are all required, typed and known.

    `key` is where it stands: a name at the top level ("train"), or one in each profile
    ("profiles.*.train"). "" marks a section that stands inside another.
    """

    key: ClassVar[str] = ""
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
