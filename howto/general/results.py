"""What one model makes of the general text and the questions: what the stage writes and `evaluate` reads."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from howto.core.atomic import write_json
from howto.core.errors import UserError
from howto.general.inputs import Question


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class ScoredPassage(_Strict):
    """The mean log-probability, in nats, of a passage's tokens after the first, of which there are `tokens`."""

    name: str
    tokens: int
    log_probability: float


class ChatAnswer(_Strict):
    """An answer to a question, and what ended it: "eos" (the model), "stop", "length" or "too_long"."""

    question: Question
    text: str
    stop: str


class GeneralResults(_Strict):
    """All of one model. Both lists are empty if params.yaml asks for nothing."""

    passages: list[ScoredPassage] = []
    answers: list[ChatAnswer] = []


def general_path(folder: Path, model: str) -> Path:
    """Return where the results of "base" or "adapter" are."""
    return folder / f"general_{model}.json"


def write_results(path: Path, results: GeneralResults) -> None:
    """Write the results atomically."""
    write_json(path, results.model_dump())


def read_results(path: Path, stage: str) -> GeneralResults:
    """Return what `stage`, such as general@base, wrote.

    Raise UserError if the file is missing or damaged.
    """
    try:
        return GeneralResults.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Make it with `dvc repro {stage}`.") from None
    except ValidationError:
        raise UserError(f"{path}: damaged. Make it again with `dvc repro -f {stage}`.") from None
