"""Read general text and chat questions, which the project ships or a user names in params.yaml."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from howto.core.errors import UserError

Text = Annotated[str, StringConstraints(pattern=r"\S")]
SUFFIXES = (".jsonl", ".md", ".txt")


class Passage(BaseModel):
    """A line of a JSONL file of general text."""

    model_config = ConfigDict(strict=True, frozen=True)
    text: Text


class Question(BaseModel):
    """A line of a file of questions. An answer is right if it has one of the `accepted` strings; without, none is."""

    model_config = ConfigDict(strict=True, frozen=True)
    question: Text
    category: str = ""
    accepted: list[Text] = Field(default=[])


L = TypeVar("L", Passage, Question)


def read_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of each passage: a .txt or .md file, or a line of a JSONL file with a `text` field.

    Of a folder, all such files are read, in the order of their paths. Others are named on standard output.

    Raise UserError if `path` is missing or has no text, or a line is not such an object. The message names the line.
    """
    key, count = "general.text", 0
    if not path.exists():
        raise _missing(path, key)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if unread := [str(file) for file in files if file.suffix.lower() not in SUFFIXES]:
        if not path.is_dir():
            raise UserError(f"params.yaml: {key}: expected {', '.join(SUFFIXES)} or a folder, got {path}. Convert it.")
        print(f"general: not read: {', '.join(unread)}")
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        if file.suffix.lower() == ".jsonl":
            found = [(f"{name}:{number}", passage.text) for number, passage in _lines(file, Passage)]
        elif file.suffix.lower() in SUFFIXES:
            found = [(name, text)] if (text := _read(file)).strip() else []
        else:
            found = []
        count += len(found)
        yield from found
    if not count:
        raise UserError(f"params.yaml: {key}: {path} has no text. Name another path, or set null.")


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a JSONL file. Raises as `read_texts`."""
    if not path.is_file():
        raise _missing(path, "general.chat")
    if not (questions := [question for _, question in _lines(path, Question)]):
        raise UserError(f"params.yaml: general.chat: {path} has no questions. Name another file, or set null.")
    return questions


def _missing(path: Path, key: str) -> UserError:
    return UserError(f"params.yaml: {key}: {path}: no such file. Correct the path, or set null to leave it out.")


def _lines(path: Path, kind: type[L]) -> Iterator[tuple[int, L]]:
    """Yield (line number from 1, object) of each line that is not blank."""
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, kind.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            problem = f"{field}: {first['msg']}" if field else first["msg"]
            raise UserError(f"{path}:{number}: {problem}. Correct or remove the line.") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
