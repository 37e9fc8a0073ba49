"""Model and data come from the project itself, from a local path, or from a hub; what fails says what to do."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import run_stage
from tests.hub import COMMIT, Hub, serve

MODEL, DATA = "someone/small-chat", "someone/how-to"


@pytest.fixture
def hub(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    files = {path.name: path.read_bytes() for path in (finished / "models/base").iterdir()}
    files |= {"pytorch_model.bin": b"pickled", "modeling.py": b"print('remote code')"}
    rows = (finished / "data/raw/embedded.jsonl").read_bytes()
    repositories = {f"models/{MODEL}": files, f"datasets/{DATA}": {"rows.jsonl": rows}}
    with serve(Hub(repositories)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-cache"))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield served


def params_of(folder: Path, text: str, *, model: str | None = None, data: str | None = None) -> None:
    """Write params.yaml with another `model` and `data` of the embedded profile (YAML flow mappings)."""
    start = text.index("\n    model:\n")
    middle = text.index("\n    data:\n", start)
    end = text.index("\n    machine:\n", middle)
    model_text = f"\n    model: {model}" if model else text[start:middle]
    data_text = f"\n    data: {data}" if data else text[middle:end]
    (folder / "params.yaml").write_text(text[:start] + model_text + data_text + text[end:], encoding="utf-8")


def test_a_model_from_the_hub_is_the_pinned_one_without_pickles_and_code(
    hub: Hub, tmp_path: Path, small_params: str, finished: Path
) -> None:
    weights = (finished / "models/base/model.safetensors").read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    params_of(tmp_path, small_params, model=f"{{source: {MODEL}, revision: {COMMIT}, weights_sha256: {digest}}}")
    done = run_stage(tmp_path, "stages.fetch_model")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "models/base").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "modeling.py"}
    assert (tmp_path / "models/base/model.safetensors").read_bytes() == weights
    assert not any("pytorch_model" in asked for asked in hub.asked)


def test_a_data_set_file_from_the_hub_is_the_one_that_is_there(hub: Hub, tmp_path: Path, small_params: str) -> None:
    params_of(tmp_path, small_params, data=f"{{source: {DATA}, revision: {COMMIT}, file: rows.jsonl}}")
    done = run_stage(tmp_path, "stages.fetch_data")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/raw/rows.jsonl").read_bytes() == hub.repositories[f"datasets/{DATA}"]["rows.jsonl"]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("{source: someone/else}", "the hub has no such repository"),
        (f"{{source: {MODEL}, revision: {'d' * 40}}}", "the hub has no such revision"),
        (f"{{source: {MODEL}, weights_sha256: {'a' * 64}}}", "its sha256 is"),
        ("{source: someone/locked}", "set HF_TOKEN"),
        ("{source: someone/pickled}", "no .safetensors weights"),
        ("{source: not a source}", "neither a path nor a hub id"),
        ("{source: ./nowhere}", "not a Hugging Face folder"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_line_and_leaves_nothing(
    hub: Hub, tmp_path: Path, small_params: str, model: str, said: str
) -> None:
    hub.repositories["models/someone/locked"] = {"config.json": b"{}"}
    hub.gated.add("models/someone/locked")
    hub.repositories["models/someone/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b""}
    params_of(tmp_path, small_params, model=model)
    done = run_stage(tmp_path, "stages.fetch_model")
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list((tmp_path / "models").iterdir()) == []


def test_a_gated_model_comes_with_a_token_that_is_written_nowhere(
    hub: Hub, tmp_path: Path, small_params: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated.add(f"models/{MODEL}")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    params_of(tmp_path, small_params, model=f"{{source: {MODEL}}}")
    done = run_stage(tmp_path, "stages.fetch_model")
    assert done.returncode == 0, done.stderr
    assert hub.token not in done.stdout + done.stderr
    assert not any(hub.token.encode() in p.read_bytes() for p in (tmp_path / "models").rglob("*") if p.is_file())


def test_no_network_stops_at_once_and_names_the_embedded_profile(
    tmp_path: Path, small_params: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:  # a port on which nothing listens
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-cache"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        (tmp_path / "params.yaml").write_text(
            small_params.replace("profile: embedded", "profile: tinyllama"), encoding="utf-8"
        )
        for stage in ("stages.fetch_model", "stages.fetch_data"):
            done = run_stage(tmp_path, stage)
            assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
            assert "no network" in done.stderr and "profile: embedded" in done.stderr
    assert list((tmp_path / "models").iterdir()) == list((tmp_path / "data").iterdir()) == []


def test_a_local_model_folder_and_a_local_file_are_copied(finished: Path, tmp_path: Path, small_params: str) -> None:
    rows = tmp_path / "mine.jsonl"
    rows.write_text(json.dumps({"instruction": "How?", "response": "So."}) + "\n", encoding="utf-8")
    params_of(tmp_path, small_params, model=f"{{source: {finished / 'models/base'}}}", data=f"{{source: {rows}}}")
    for stage in ("stages.fetch_model", "stages.fetch_data"):
        done = run_stage(tmp_path, stage)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/raw/mine.jsonl").read_bytes() == rows.read_bytes()
    for path in (finished / "models/base").iterdir():
        assert (tmp_path / "models/base" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{source: ./nowhere.jsonl}", "nowhere.jsonl: no such file"),
        ("{source: params.yaml}", "ends in .jsonl is wanted"),
        (f"{{source: rows.jsonl, sha256: {'a' * 64}}}", "rows.jsonl: its sha256 is"),
        ("{source: someone/rows}", "name the .jsonl file"),
        ("{source: embedded, seed: 1, rows: 100000}", "the embedded world is too small"),
    ],
)
def test_data_that_cannot_be_had_is_one_line_and_leaves_nothing(
    tmp_path: Path, small_params: str, data: str, said: str
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
    params_of(tmp_path, small_params, data=data)
    done = run_stage(tmp_path, "stages.fetch_data")
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list((tmp_path / "data").iterdir()) == []
