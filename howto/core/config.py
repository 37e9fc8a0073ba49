"""Read and check params.yaml: sections with typed keys, and errors that name file, line and key."""

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

from howto.core.errors import UserError

S = TypeVar("S", bound=BaseModel)
Key = tuple[str | int, ...]


class Section(BaseModel):
    """A part of params.yaml whose keys are all required, typed and known.

    `key` is where it stands: a name at the top level ("train"), or one in each profile
    ("profiles.*.train"). "" marks a section that stands inside another.
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
        """What stands in the file under a dotted key."""
        value: Any = self._values
        for name in key.split("."):
            value = value[name]
        return value

    def section(self, kind: type[S]) -> S:
        """The section of this kind; one that stands in each profile is the active profile's."""
        key: str = kind.key  # type: ignore[attr-defined]
        return kind.model_validate(self.value(key.replace("*", self.profile)))


def read_sections(path: Path, kinds: Sequence[type[Section]]) -> Params:
    """Read and check a file that has these sections and no others.

    Raises:
        UserError: no such file, not YAML, or a key that is unknown, missing, of the wrong type or out of
            range; the message names file, line and key.
    """
    values, lines = _parse(path)
    shared = {kind.key: kind for kind in kinds if not kind.key.startswith("profiles.")}
    in_profile = {kind.key.split(".")[-1]: kind for kind in kinds if kind.key.startswith("profiles.")}
    check = _Check(path, lines)
    check.keys((), values, ["profile", *shared, "profiles"])
    profiles = values["profiles"]
    if not isinstance(profiles, dict) or not profiles:
        raise check.stop(("profiles",), "a mapping of profile names is wanted")
    if not isinstance(values["profile"], str) or values["profile"] not in profiles:
        raise check.stop(
            ("profile",), f"there is no profile {values['profile']!r}; choose one of: {', '.join(profiles)}"
        )
    for key, kind in shared.items():
        check.section((key,), values[key], kind)
    for name, profile in profiles.items():
        check.keys(("profiles", name), profile, list(in_profile))
        for key, kind in in_profile.items():
            check.section(("profiles", name, key), profile[key], kind)
    return Params(path, values["profile"], values, tuple(kinds))


def _parse(path: Path) -> tuple[dict[str, Any], CommentedMap]:
    """The file's values, and the same with the line of each key."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: not there; run from the project's root, where params.yaml lies") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    try:
        values = YAML(typ="safe", pure=True).load(io.StringIO(text))
        lines = YAML(typ="rt").load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = (error.problem or "not YAML").splitlines()[0]
        raise UserError(f"{path}{line}: {problem}; mend the line") from None
    except YAMLError as error:
        raise UserError(f"{path}: not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a mapping of keys is wanted, as in the committed file")
    return values, lines


@dataclass(frozen=True)
class _Check:
    """Checks that stop with the file, the line and the key."""

    path: Path
    lines: CommentedMap

    def stop(self, key: Key, problem: str) -> UserError:
        line = self._line(key)
        return UserError(f"{self.path}{f':{line}' if line else ''}: {'.'.join(str(part) for part in key)}: {problem}")

    def keys(self, key: Key, value: Any, wanted: list[str]) -> None:
        """`value` is a mapping of just the keys `wanted`."""
        if not isinstance(value, dict):
            raise self.stop(key, f"a mapping with the keys {', '.join(wanted)} is wanted")
        for name in value:
            if name not in wanted:
                raise self.stop((*key, name), "unknown key" + _nearest(str(name), wanted))
        for name in wanted:
            if name not in value:
                raise self.stop((*key, name), "this key is missing")

    def section(self, key: Key, value: Any, kind: type[BaseModel]) -> None:
        """`value` is a whole and valid section."""
        try:
            kind.model_validate(value)
        except ValidationError as error:
            errors = error.errors()
            # An unknown key is the likeliest cause of a missing one: say that first.
            first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
            missing = [str(e["loc"][-1]) for e in errors if e["type"] == "missing"]
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 and not missing else ""
            raise self.stop((*key, *first["loc"]), _problem(dict(first), missing) + more) from None

    def _line(self, key: Key) -> int | None:
        """The line of the key, or of the nearest key around it that stands in the file."""
        node, line = self.lines, None
        for part in key:
            if not isinstance(node, CommentedMap) or part not in node:
                break
            line = node.lc.key(part)[0] + 1
            node = node[part]
        return line


def _problem(error: dict[str, Any], missing: list[str]) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key" + _nearest(str(error["loc"][-1]), missing)
    if error["type"] == "missing":
        return "this key is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{error['msg'].removeprefix('Input should be ')} is wanted, not {error['input']!r:.60}"


def _nearest(name: str, wanted: list[str]) -> str:
    near = difflib.get_close_matches(name, wanted, 1, cutoff=0.4)
    return f"; is {near[0]} meant?" if near else "; remove it"
