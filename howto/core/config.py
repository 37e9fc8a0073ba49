"""Read and check params.yaml: typed sections, and errors that name file, line and key."""

from __future__ import annotations

import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
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
    values, lines = _parse(path)
    shared = {kind.key: kind for kind in kinds if not kind.key.startswith("profiles.")}
    in_profile = {kind.key.split(".")[-1]: kind for kind in kinds if kind.key.startswith("profiles.")}
    check = _Check(path, lines)
    check.keys((), values, ["profile", *shared, "profiles"])
    profiles = values["profiles"]
    if not isinstance(profiles, dict) or not profiles:
        raise check.error(("profiles",), "expected a mapping of profiles")
    if not isinstance(values["profile"], str) or values["profile"] not in profiles:
        raise check.error(("profile",), f"no profile {values['profile']!r}. Choose one of: {', '.join(profiles)}.")
    for key, kind in shared.items():
        check.section((key,), values[key], kind)
    for name, profile in profiles.items():
        check.keys(("profiles", name), profile, list(in_profile))
        for key, kind in in_profile.items():
            check.section(("profiles", name, key), profile[key], kind)
    return Params(path, values["profile"], values, tuple(kinds))


def _parse(path: Path) -> tuple[dict[str, Any], CommentedMap]:
    """Return the file's values, and the same with the line of each key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run from the project's root.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.") from None
    try:
        values = YAML(typ="safe", pure=True).load(io.StringIO(text))
        lines = YAML(typ="rt").load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = (error.problem or "not YAML").splitlines()[0]
        raise UserError(f"{path}{line}: {problem}. Correct the line.") from None
    except YAMLError as error:
        raise UserError(f"{path}: not YAML ({one_line(error)})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of keys, as in the committed file.")
    return values, lines


@dataclass(frozen=True)
class _Check:
    """Checks whose errors name file, line and key."""

    path: Path
    lines: CommentedMap

    def error(self, key: Key, problem: str) -> UserError:
        line = self._line(key)
        return UserError(f"{self.path}{f':{line}' if line else ''}: {'.'.join(str(part) for part in key)}: {problem}")

    def keys(self, key: Key, value: Any, expected: list[str]) -> None:
        """Check that `value` is a mapping of exactly the keys `expected`."""
        if not isinstance(value, dict):
            raise self.error(key, f"expected a mapping with the keys {', '.join(expected)}")
        for name in value:
            if name not in expected:
                raise self.error((*key, name), "unknown key" + _suggestion(str(name), expected))
        for name in expected:
            if name not in value:
                raise self.error((*key, name), "missing key")

    def section(self, key: Key, value: Any, kind: type[BaseModel]) -> None:
        """Check that `value` is a complete and valid section."""
        try:
            kind.model_validate(value)
        except ValidationError as error:
            errors = error.errors()
            # A misspelt key is both unknown and missing. The unknown one is what the user sees in the file.
            first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
            missing = [str(e["loc"][-1]) for e in errors if e["type"] == "missing"]
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 and not missing else ""
            raise self.error((*key, *first["loc"]), _problem(dict(first), missing) + more) from None

    def _line(self, key: Key) -> int | None:
        """Return the line of the key, or of the innermost section around it that is in the file."""
        node, line = self.lines, None
        for part in key:
            if not isinstance(node, CommentedMap) or part not in node:
                break
            line = node.lc.key(part)[0] + 1
            node = node[part]
        return line


def _problem(error: dict[str, Any], missing: list[str]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key" + _suggestion(str(error["loc"][-1]), missing)
    if error["type"] == "missing":
        return "missing key"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"expected {error['msg'].removeprefix('Input should be ')}, got {error['input']!r:.60}"


def _suggestion(name: str, expected: list[str]) -> str:
    close = difflib.get_close_matches(name, expected, 1, cutoff=0.4)
    return f". Did you mean {close[0]}?" if close else ". Remove it."
