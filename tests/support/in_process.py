"""A command within the process of the tests: its libraries are imported once, and not for each call."""

from __future__ import annotations

import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import pytest
import torch

from howto.core.errors import UserError


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run_here(main: Callable[[], None], folder: Path, *arguments: str, stdin: bytes = b"") -> Done:
    """`python -m <the module of main> <arguments>` in `folder`, but for what signals do to it."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with pytest.MonkeyPatch.context() as changed, _settings_kept(), redirect_stdout(out), redirect_stderr(err):
        changed.chdir(folder)
        changed.setattr(sys, "argv", ["command", *arguments])
        changed.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        try:
            inspect.unwrap(main)()
        except UserError as stop:
            status = 1
            print(f"error: {stop}", file=sys.stderr)
        except SystemExit as end:
            assert isinstance(end.code, int)
            status = end.code
    return Done(status, out.getvalue(), err.getvalue())


def edit_params(folder: Path, old: str, new: str) -> None:
    """Replace what stands once in the params.yaml of `folder`."""
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"params.yaml no longer has {old!r} once"
    path.write_text(text.replace(old, new), encoding="utf-8")


@contextmanager
def _settings_kept() -> Iterator[None]:
    """A stage sets up its process, and this one goes on to other tests."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with patch.dict(os.environ), warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
