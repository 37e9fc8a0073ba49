"""The `train` sections of params.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationError, create_model, model_validator

from howto.core.config import Params, Section
from howto.core.errors import UserError

INITS_THAT_CHANGE_THE_BASE = ("olora", "pissa")  # what they put into the adapter they take from the base's weights


class Lora(Section):
    """`train.lora`: the adapter (Hu et al. 2021, arXiv:2106.09685). The keys are those of PEFT's LoraConfig."""

    r: int = Field(ge=1)
    alpha: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str]
    exclude_modules: list[str] | None
    layers: list[int] | None
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    init: Literal["default", "gaussian", "orthogonal", "olora", "pissa"]
    rslora: bool
    dora: bool
    plus_ratio: float | None = Field(ge=1)

    @model_validator(mode="after")
    def _check_combinations(self) -> Lora:
        if self.target_modules == []:
            raise ValueError("target_modules: expected module names or all-linear, got []")
        other_kinds = self.rslora or self.dora or self.rank_pattern or self.alpha_pattern
        if self.init in INITS_THAT_CHANGE_THE_BASE and other_kinds:
            raise ValueError(f"init {self.init} does not support rslora, dora, rank_pattern or alpha_pattern")
        if self.init == "orthogonal" and self.r % 2:
            raise ValueError(f"init orthogonal: expected an even r, got {self.r}")
        return self


class Train(Section):
    """`train`: the same for all profiles."""

    key: ClassVar[str] = "train"
    seed: int
    max_length: int = Field(ge=16)
    too_long: Literal["shorten", "drop"]
    packing: bool
    lora: Lora
    schedule: Literal["cosine", "linear", "constant"]
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    validate_every: int | None = Field(ge=1)
    validation_answers: int | None = Field(ge=1)
    keep: Literal["best_loss", "best_rougeL", "last"]
    patience: int | None = Field(ge=1)

    @model_validator(mode="after")
    def _check_answers(self) -> Train:
        if self.keep == "best_rougeL" and self.validation_answers is None:
            raise ValueError("keep: best_rougeL needs validation_answers. Set it to a number of validation rows.")
        return self


def _optional(kind: type[Section]) -> Any:
    """Return the fields of a section for `create_model`, each with the default None: not overridden."""
    return {name: (field.rebuild_annotation() | None, None) for name, field in kind.model_fields.items()}


if TYPE_CHECKING:

    class Overrides(Section):
        """The keys of `train`, each optional."""

else:
    _lora = create_model("LoraOverrides", __base__=Section, **_optional(Lora))
    Overrides = create_model("Overrides", __base__=Section, **{**_optional(Train), "lora": (_lora | None, None)})


class ProfileTrain(Overrides):
    """`profiles.<name>.train`: what a profile sets itself, and overrides of any key of `train`.

    Exactly one of `epochs` and `steps` gives the length of training.
    """

    key: ClassVar[str] = "profiles.*.train"
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(gt=0)
    batch_size: int = Field(ge=1)
    micro_batch_size: int = Field(ge=1)
    gradient_checkpointing: bool
    processes: int = Field(ge=1)
    fsdp: bool

    @model_validator(mode="after")
    def _check_combinations(self) -> ProfileTrain:
        if self.batch_size % self.micro_batch_size:
            raise ValueError("batch_size must be a multiple of micro_batch_size")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("expected either epochs or steps")
        if self.fsdp and self.processes == 1:
            raise ValueError("fsdp: expected processes of 2 or more, got 1. Raise it, or set fsdp to false.")
        return self

    def applied_to(self, shared: Train) -> Train:
        """Return `shared` with this profile's overrides.

        Raise UserError if the combination is invalid.
        """
        own = self.model_dump(include=set(Train.model_fields), exclude_none=True)
        values = shared.model_dump()
        lora = {**values["lora"], **own.pop("lora", {})}
        try:
            return Train.model_validate({**values, **own, "lora": lora})
        except ValidationError as error:
            raise UserError(f"params.yaml: profiles.*.train with train: {error.errors()[0]['ctx']['error']}") from None


def train_settings(params: Params) -> tuple[Train, ProfileTrain]:
    """Return `train` with the active profile's overrides, and the profile's own section. Raises as `applied_to`."""
    profile = params.section(ProfileTrain)
    return profile.applied_to(params.section(Train)), profile
