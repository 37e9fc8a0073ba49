"""What `howto.tools.doctor` has found. Nothing here needs more than Python itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from howto.core.config import Params

OK, WARNING, PROBLEM = "ok", "warning", "problem"
SECONDS = 20  # for a process that a check starts
LOCK = "requirements.lock"


@dataclass(frozen=True)
class Finding:
    """A thing that was looked at, how it is, and what to do about it."""

    level: str  # ok, warning or problem
    what: str
    said: str
    to_do: str = ""


@dataclass(frozen=True)
class Asked:
    """What the checks are told; `params` is None where params.yaml could not be read."""

    params: Params | None = None

    def value(self, key: str) -> object:
        """What params.yaml has under this key of the active profile, or at the top; None if it is not known."""
        if self.params is None:
            return None
        try:
            return self.params.value(key.replace("*", self.params.profile))
        except KeyError:
            return None


def output_of(*command: str, seconds: float = SECONDS) -> tuple[int, str, str]:
    """Exit status, output and the last line of errors of a command; status -1 if it took too long, 127 if it is not
    there."""
    if shutil.which(command[0]) is None:
        return 127, "", "not there"
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            start_new_session=True,  # without the terminal: what asks for a password there would leave it without echo
        )
    except subprocess.TimeoutExpired:
        return -1, "", f"no answer within {seconds:g} s"
    except OSError as error:
        return 127, "", str(error)
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    return done.returncode, done.stdout, errors[-1].strip() if errors else ""


def locked_versions(text: str) -> dict[str, str]:
    """Version by name, of a requirements.lock."""
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE))


def gib(count: float) -> str:
    """A number of bytes, for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 or count == 0 else f"{max(1, round(count / 2**20))} MiB"


def environment(*names: str) -> str | None:
    """The first of these variables that is set, in any case."""
    for name in names:
        for key in (name, name.lower()):
            if os.environ.get(key):
                return os.environ[key]
    return None
