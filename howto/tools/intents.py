"""Files of intents: text with one intent a line, JSONL, or CSV. Each line is read on its own."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from howto.core.errors import UserError

NAMES = ("intent", "instruction", "input")  # fields that may hold the intent, the first present one wins


class Intent(BaseModel):
    """What somebody wants to do, and a text to answer from, or ""."""

    model_config = ConfigDict(strict=True, str_strip_whitespace=True)
    intent: Annotated[str, Field(min_length=1, validation_alias=AliasChoices(*NAMES))]
    context: Annotated[str, BeforeValidator(lambda value: "" if value is None else value)] = ""

    @classmethod
    def parse(cls, fields: dict[str, Any] | bytes) -> Intent:
        """Return the intent from its fields, or from a JSON object.

        Raise UserError if a field is missing, empty or not text.
        """
        try:
            return cls.model_validate_json(fields) if isinstance(fields, bytes) else cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(": ".join([*map(str, first["loc"]), first["msg"]])) from None


def read_intents(name: str) -> tuple[dict[int, Intent], list[str]]:
    """Return the intents of a file by line, from 1, and an error `file:line: reason` for each line without one.

    `.jsonl` has objects and `.csv` has columns, with the intent under one of NAMES, and perhaps a `context`. Any other
    file, and "-" (standard input), has an intent a line. Blank lines are skipped.

    Raise UserError if the file cannot be read.
    """
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}. Give a .txt, .jsonl or .csv file.") from None
    if b"\0" in data:
        raise UserError(f"{name}: expected UTF-8 text, got NUL bytes. Save the file as UTF-8.")
    data = data.removeprefix(b"\xef\xbb\xbf")
    suffix = Path(name).suffix.lower()
    errors: list[str] = []
    lines: dict[int, Any]
    if suffix == ".csv":
        lines = _csv_rows(name, data, errors)
    else:
        lines = {line: text for line, text in enumerate(data.split(b"\n"), 1) if text.strip()}
        if suffix != ".jsonl":
            lines = {line: {"intent": text.decode("utf-8", "surrogateescape")} for line, text in lines.items()}
    intents = {}
    for line, fields in lines.items():
        try:
            intents[line] = Intent.parse(fields)
        except UserError as error:
            errors.append(f"{name}:{line}: {error}")
    return intents, errors


def _csv_rows(name: str, data: bytes, errors: list[str]) -> dict[int, dict[str, str]]:
    """Return the fields of each row, by the line on which it begins."""
    reader = csv.reader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""), strict=True)
    rows: dict[int, dict[str, str]] = {}
    header: list[str] = []
    line = 1
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                pass
            elif not header:
                header = values
            elif len(values) == len(header):
                rows[line] = dict(zip(header, values, strict=True))
            else:
                errors.append(f"{name}:{line}: expected {len(header)} values, got {len(values)}")
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{name}:{line}: {error}. Fix the quotes.") from None
    if not set(NAMES) & set(header):
        raise UserError(f"{name}: expected a column {', '.join(NAMES[:-1])} or {NAMES[-1]}, got {header}. Rename one.")
    return rows
