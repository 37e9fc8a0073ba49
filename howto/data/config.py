"""The `prepare` section of params.yaml."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PlainValidator, ValidationError, model_validator

from howto.core.config import Params, Section
from howto.core.errors import UserError


def _part(value: object) -> object:
    is_number_of_rows = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if is_number_of_rows or (isinstance(value, float) and 0 <= value < 1):
        return value
    raise ValueError(f"expected a share (0.0 to below 1.0) or a number of rows (0, 1, ...), got {value!r:.40}")


Part = Annotated[float | int, PlainValidator(_part)]
PartOrRest = Annotated[
    Literal["rest"] | float | int, PlainValidator(lambda value: value if value == "rest" else _part(value))
]


class Columns(Section):
    """The names of the columns in the raw files; null where the files have no such column."""

    instruction: str = Field(min_length=1)
    context: str | None
    response: str = Field(min_length=1)
    category: str | None
    references: str | None = None
    messages: str | None = None

    @model_validator(mode="after")
    def _differ(self) -> Columns:
        names = (self.instruction, self.context, self.response, self.references, self.messages)
        given = [name for name in names if name is not None]
        if twice := next((name for name in given if given.count(name) > 1), None):
            raise ValueError(f"two of them name the column {twice}; `messages` names a column with both sides")
        return self


class Clean(Section):
    """Which cleaning steps are switched on, in the order in which they run."""

    line_ends: bool
    control_characters: bool
    invisible_characters: bool
    unicode_nfc: bool
    blanks: bool
    reference_marks: bool


class Reject(Section):
    """Which rows are rejected."""

    empty: bool
    repeated_context: bool
    min_characters: int | None = Field(ge=1)
    max_characters: int | None = Field(ge=1)
    not_procedural: bool

    @model_validator(mode="after")
    def _bounds_leave_something(self) -> Reject:
        if self.min_characters and self.max_characters and self.min_characters > self.max_characters:
            raise ValueError("min_characters is larger than max_characters, so no row is left")
        return self


class Duplicates(Section):
    """Which rows count as repetitions of an earlier one."""

    exact: bool
    near: float | None = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _near_includes_exact(self) -> Duplicates:
        if self.near and not self.exact:
            raise ValueError("exact: false keeps equal rows, and near rejects them; set near to null, or exact to true")
        return self


class Split(Section):
    """The sizes of the splits: shares (floats) or numbers of rows (ints)."""

    train: PartOrRest
    validation: Part
    test: Part
    near_intents: float | None = Field(gt=0, lt=1)
    seed: int

    @model_validator(mode="after")
    def _rows_are_left_for_training(self) -> Split:
        shares = [part for part in (self.train, self.validation, self.test) if isinstance(part, float)]
        if sum(shares) > 1 + 1e-9 or (self.train == "rest" and sum(shares) >= 1):
            raise ValueError("the shares of train, validation and test leave no row to train on; lower them")
        if self.train == 0:
            raise ValueError("train: 0 leaves no row to train on")
        return self


class Prepare(Section):
    """How raw rows are read, cleaned, checked and split."""

    key: ClassVar[str] = "prepare"
    instruction: str = Field(min_length=1)
    columns: Columns
    bad_rows: Literal["stop", "reject"]
    clean: Clean
    reject: Reject
    duplicates: Duplicates
    split: Split


class ProfilePrepare(Section):
    """`profiles.<name>.prepare`: sizes that replace those of `prepare.split`, and an instruction of its own."""

    key: ClassVar[str] = "profiles.*.prepare"
    instruction: str | None = Field(default=None, min_length=1)
    train: PartOrRest | None = None
    validation: Part | None = None
    test: Part | None = None

    def applied_to(self, shared: Prepare) -> Prepare:
        """Return `shared` with this profile's sizes and instruction.

        Raise UserError if the sizes contradict each other.
        """
        try:
            sizes = self.model_dump(exclude={"instruction"}, exclude_none=True)
            split = Split.model_validate({**shared.split.model_dump(), **sizes})
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"params.yaml: prepare.split with the profile's own prepare: {reason}") from None
        return shared.model_copy(update={"split": split, "instruction": self.instruction or shared.instruction})


def prepare_settings(params: Params) -> Prepare:
    """Return `prepare` with the active profile's overrides. Raises as `applied_to`."""
    return params.section(ProfilePrepare).applied_to(params.section(Prepare))
