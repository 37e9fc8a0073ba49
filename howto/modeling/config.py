"""The `machine` sections of params.yaml: the hardware settings that change results."""

from typing import ClassVar, Literal

from pydantic import Field

from howto.core.config import Section


class Machine(Section):
    """`machine`: the same for all profiles."""

    key: ClassVar[str] = "machine"
    threads: int = Field(ge=1, le=1024)
    instruction_set: Literal["portable", "native"]
    deterministic: bool


class ProfileMachine(Section):
    """`profiles.<name>.machine`."""

    key: ClassVar[str] = "profiles.*.machine"
    device: Literal["cpu", "cuda", "auto"]
    precision: Literal["float32", "bfloat16"]
