"""Read and check params.yaml: typed sections, and errors that name file, line and key."""

from __future__ import annotations

import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from howto.core.errors import UserError, one_line

S = TypeVar("S", bound=BaseModel)
Key = tuple[str | int, ...]


class Section(BaseModel):
    """A section of params.yaml. Its keys are typed, and an unknown key is an error.

    `key` is its place: at the top level ("train"), in each profile ("profiles.*.train"), or "" inside another section.
    """

    key: ClassVar[str] = ""
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Params:
    """The checked params.yaml."""

    path: Path
    profile: str
    _values: dict[str, Any]
    _kinds: tuple[type[Section], ...]

    def reread(self) -> Params:
        """Return what the file says now. Raises as `read_sections`."""
        return read_sections(self.path, self._kinds)

    def value(self, key: str) -> Any:
        """Return the value of a dotted key."""
        value: Any = self._values
        for name in key.split("."):
            value = value[name]
        return value

    def section(self, kind: type[S]) -> S:
        """Return the section of this kind; of a section in each profile, the active profile's."""
        key: str = kind.key  # type: ignore[attr-defined]
        return kind.model_validate(self.value(key.replace("*", self.profile)))


def read_sections(path: Path, kinds: Sequence[type[Section]]) -> Params:
    """Read and check a file that has these sections and no others.

    Raise UserError if the file is missing or not YAML, or a key is unknown, missing, of the wrong type or out of range.
    The message names file, line and key.
    """
    text, values = _parse(path)
    profile: Any = _model(*(kind for kind in kinds if kind.key.startswith("profiles.")))
    profiles = {"profile": (str, ...), "profiles": (dict[str, profile], Field(min_length=1))}
    try:
        _model(*(kind for kind in kinds if "." not in kind.key), **profiles).model_validate(values)
    except ValidationError as error:
        raise UserError(_first_problem(path, text, error)) from None
    if values["profile"] not in values["profiles"]:
        names = ", ".join(values["profiles"])
        line = _line(text, ("profile",))
        raise UserError(f"{path}{line}: profile: no profile {values['profile']!r}. Choose one of: {names}.")
    return Params(path, values["profile"], values, tuple(kinds))


def _model(*kinds: type[Section], **fields: Any) -> type[Section]:
    """Return a section that has these sections in it, each under the last part of its key."""
    fields |= {kind.key.split(".")[-1]: (kind, ...) for kind in kinds}
    return create_model("File", __base__=Section, **fields)


def _parse(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the file's text and its values."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run from the project's root.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
    try:
        values = YAML(typ="safe", pure=True).load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = (error.problem or "not YAML").splitlines()[0]
        raise UserError(f"{path}{line}: {problem}. Correct the line.") from None
    except YAMLError as error:
        raise UserError(f"{path}: not YAML ({one_line(error)})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys, as in the committed file.")
    return text, values


def _first_problem(path: Path, text: str, error: ValidationError) -> str:
    """Describe the first error. A misspelt key is both unknown and missing; the file has the unknown one."""
    errors = error.errors()
    first = next((one for one in errors if one["type"] == "extra_forbidden"), errors[0])
    key, kind = first["loc"], first["type"]
    missing = [str(one["loc"][-1]) for one in errors if one["type"] == "missing" and one["loc"][:-1] == key[:-1]]
    if kind == "extra_forbidden":
        problem = "unknown key" + _suggestion(str(key[-1]), missing)
    elif kind == "missing":
        problem = "missing key"
    elif kind == "value_error":
        problem = str(first["ctx"]["error"])
    else:
        problem = f"expected {first['msg'].removeprefix('Input should be ')}, got {first['input']!r:.60}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 and not missing else ""
    return f"{path}{_line(text, key)}: {'.'.join(map(str, key))}: {problem}{more}"


def _line(text: str, key: Key) -> str:
    """Return ":" and the line of the key in a file, or of the innermost section around it that is in the file."""
    line, node = "", YAML(typ="rt").load(io.StringIO(text))
    for part in key:
        if not isinstance(node, CommentedMap) or part not in node:
            break
        line = f":{node.lc.key(part)[0] + 1}"
        node = node[part]
    return line


def _suggestion(name: str, expected: list[str]) -> str:
    close = difflib.get_close_matches(name, expected, 1, cutoff=0.4)
    return f". Did you mean {close[0]}?" if close else ". Remove it."
