"""The fixed instruction, by itself: whoever asks a model needs it, and nothing else of `prepare`."""

from __future__ import annotations

from typing import ClassVar

from pydantic import RootModel


class Instruction(RootModel[str]):
    """`prepare.instruction`: the system message of every row."""

    key: ClassVar[str] = "prepare.instruction"
