"""Run a command inside the test process, so that its libraries are imported once and not for every call."""

import importlib
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

from howto.core import errors


class Done(NamedTuple):
    """The exit status of a command, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_here(main: Callable[[], None], folder: Path, *arguments: str, stdin: bytes = b"") -> Done:
    """Run `python -m <the module of main> <arguments>` in `folder`. Signals are not handled."""
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with pytest.MonkeyPatch.context() as changed, _keep_settings(), redirect_stdout(out), redirect_stderr(err):
        changed.chdir(folder)
        changed.setattr(sys, "argv", ["command", *arguments])
        changed.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        changed.setattr(errors, "watch_signals", lambda: None)
        try:
            errors.reports_errors(main)()
        except SystemExit as end:
            assert end.code is None or isinstance(end.code, int)
            status = end.code or 0
    return Done(status, out.getvalue(), err.getvalue())


def run_stage_here(stage: str, folder: Path) -> Done:
    """Run a stage by its name in dvc.yaml, such as `infer@base`."""
    name, _, model = stage.partition("@")
    main = importlib.import_module(f"stages.{name}").main
    return run_here(main, folder, *(["--stage", model] if model else []))


def edit_params(folder: Path, old: str, new: str) -> None:
    """Replace `old`, which occurs once in the params.yaml of `folder`."""
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"params.yaml has {old!r} {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")


@contextmanager
def _keep_settings() -> Iterator[None]:
    """Undo what a stage sets for its whole process."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with patch.dict(os.environ), warnings.catch_warnings():
        yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
