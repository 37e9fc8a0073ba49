"""A fingerprint changes with everything that a stage reads, and with nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from howto.core.errors import UserError
from howto.modeling.fingerprint import Fingerprint
from howto.params import read_params
from howto.training.config import Train
from tests.conftest import ROOT
from tests.support.in_process import edit_params


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    Path("rows.jsonl").write_text("1\n", encoding="utf-8")
    Path("base").mkdir()
    Path("base/weights").write_text("w", encoding="utf-8")
    return tmp_path


def fingerprint() -> Fingerprint:
    return Fingerprint([Path("rows.jsonl"), Path("base")], read_params(), [Train], ["howto/training"])


EDITS: dict[str, Callable[[], object]] = {
    "rows.jsonl": lambda: Path("rows.jsonl").write_text("2\n", encoding="utf-8"),
    "base/weights": lambda: Path("base/weights").unlink(),
    "base/more": lambda: Path("base/more").write_text("", encoding="utf-8"),
    "params.yaml (train.lora)": lambda: edit_params(Path(), "    r: 8 ", "    r: 4 "),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_changes_the_key_and_is_named(folder: Path, name: str) -> None:
    before = fingerprint()
    before.check()
    EDITS[name]()
    with pytest.raises(UserError) as error:
        before.check()
    assert str(error.value).startswith(f"{name}: changed while the stage ran")
    assert fingerprint().key() != before.key()


def test_a_touched_file_another_stages_param_or_an_ignored_one_changes_nothing(folder: Path) -> None:
    before = fingerprint()
    Path("rows.jsonl").write_text("1\n", encoding="utf-8")
    edit_params(folder, "  confidence: 0.95 ", "  confidence: 0.9 ")
    before.check()
    assert fingerprint().key() == before.key()
    edit_params(folder, "  seed: 42 ", "  seed: 43 ")
    assert fingerprint().key(ignoring="train.seed") == before.key(ignoring="train.seed")


def test_a_key_depends_on_versions_and_on_the_named_code() -> None:
    code = Fingerprint([], read_params(ROOT / "params.yaml"), [Train], ["howto/core", "stages/train.py"])
    assert code.key(torch="1") != code.key(torch="2")
    assert {"howto/core/config.py", "stages/train.py"} <= code.parts().keys()
    assert "howto/evaluation/config.py" not in code.parts()
