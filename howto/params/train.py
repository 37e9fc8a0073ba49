"""The `train` sections of params.yaml."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from howto.params.section import Section


class Lora(Section):
    """`train.lora`: the adapter (Hu et al. 2021, arXiv:2106.09685), as in PEFT's LoraConfig."""

    r: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str]


class Train(Section):
    """`train`: the same for all profiles."""

    key: ClassVar[str] = "train"
    seed: int
    max_length: int = Field(ge=16)
    lora: Lora
    schedule: Literal["cosine", "linear", "constant"]
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    keep: Literal["best", "last"]


class ProfileTrain(Section):
    """`profiles.<name>.train`."""

    key: ClassVar[str] = "profiles.*.train"
    epochs: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)

    @model_validator(mode="after")
    def _micro_batches_fit(self) -> ProfileTrain:
        if self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        return self
