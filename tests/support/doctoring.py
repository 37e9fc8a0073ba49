"""A project that the doctor examines, and what is asked of its findings."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from howto.params import read_params
from howto.tools.finding import OK, Asked, Finding
from tests.conftest import ROOT
from tests.support.in_process import edit_params

MODEL, DATA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "databricks/databricks-dolly-15k"
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
VARIABLES = (*TOKENS, "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "PET_NNODES")


@pytest.fixture
def examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone as far as the doctor looks, in no git repository, and an environment that says nothing."""
    for name in (
        "params.yaml",
        "pyproject.toml",
        "requirements.lock",
        "dvc.lock",
        ".dvc/config",
    ):
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def ask(check: Callable[[Asked], list[Finding]]) -> list[Finding]:
    return check(Asked(read_params()))


def only(check: Callable[[Asked], list[Finding]], level: str, *said: str) -> None:
    """The check has one finding of this level, which says this."""
    found = [finding for finding in ask(check) if finding.level == level]
    assert len(found) == 1, found
    text = f"{found[0].what}: {found[0].said} -> {found[0].to_do}"
    assert all(part in text for part in said), text
    assert level == OK or found[0].to_do
    assert "\n" not in text


def replace(path: str, old: str, new: str) -> None:
    text = Path(path).read_text(encoding="utf-8")
    assert old in text
    Path(path).write_text(text.replace(old, new), encoding="utf-8")


def use_tinyllama(folder: Path) -> None:
    edit_params(folder, "\nprofile: smollm2", "\nprofile: tinyllama")


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def remote(url: str) -> None:
    Path(".dvc/config").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {url}\n", encoding="utf-8"
    )
