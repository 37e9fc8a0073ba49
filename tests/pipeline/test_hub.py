"""Model and data come from a hub at the pinned revision; what fails is one line that says what to do."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.fetching import DATA, MODEL, OTHERS, PARTS, ROWS, SHARDS, STAGES, WEIGHTS, Place, listing, weights
from tests.support.hub import COMMIT, OLDER, Fault, Hub, sha256

PINNED_MODEL = f"{{source: {MODEL}, revision: {COMMIT}}}"
FIRST = f"{{source: {DATA}, file: rows.jsonl}}"
ALWAYS = 1 << 30


def test_a_model_is_the_pinned_one_without_pickles_and_code(hub: Hub, place: Place) -> None:
    digest = sha256(WEIGHTS)
    printed = place.succeeds("model", f"{{source: {MODEL}, revision: {COMMIT}, weights_sha256: {digest}}}")
    assert place.files("models/base") == {"model.safetensors": WEIGHTS, **PARTS}
    assert f"{MODEL} at revision {COMMIT}" in printed and digest in printed
    assert not any(name in asked.path for asked in hub.asked for name in OTHERS)
    assert all(MODEL in asked.path or asked.path.startswith("cdn/") for asked in hub.asked), "something else was asked"


def test_the_revision_decides_and_a_run_without_one_reports_its_commit(hub: Hub, place: Place) -> None:
    assert OLDER in place.succeeds("model", f"{{source: {MODEL}, revision: {OLDER}}}")
    assert place.files("models/base")["model.safetensors"] == weights(500)
    assert COMMIT in place.succeeds("data", f"{{source: {DATA}}}")


@pytest.mark.parametrize(
    ("file", "names"),
    [
        (None, sorted(ROWS)),
        ("data/train-*.parquet", sorted(SHARDS)),
        ("data/train-[1].parquet", ["data/train-1.parquet"]),
        ("old [2].json", ["old [2].json"]),
    ],
)
def test_the_files_of_a_data_set_are_the_selected_ones(
    hub: Hub, place: Place, file: str | None, names: list[str]
) -> None:
    expected = {name: ROWS[name] for name in names}
    digest = listing(expected) if len(expected) > 1 else sha256(*expected.values())
    assert digest in place.succeeds("data", f"{{source: {DATA}, file: {json.dumps(file)}, sha256: {digest}}}")
    assert place.files("data/raw") == {f"rows/{name}": data for name, data in expected.items()}


# --- What fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "source", "phrase"),
    [
        ("model", "{source: someone/else}", "someone/else: the hub has no such repository"),
        ("model", f"{{source: {MODEL}, revision: {'d' * 40}}}", "the hub has no such revision"),
        ("model", "{source: not a source}", "expected a path or a hub id"),
        ("model", "{source: someone/pickled}", "no model.safetensors weights"),
        ("model", "{source: someone/adapter}", "no config.json"),
        ("model", "{source: someone/half}", "model-00002-of-00002.safetensors is missing"),
        ("data", f"{{source: {DATA}, file: nothing.jsonl}}", "no file that matches 'nothing.jsonl'"),
        ("data", "{source: someone/escape}", "a file outside of itself, '/escaped.jsonl'"),
        ("data", "{source: someone/climb}", "a file outside of itself"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub: Hub, place: Place, what: str, source: str, phrase: str) -> None:
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    half = {**PARTS, "model-00001-of-00002.safetensors": WEIGHTS, "model.safetensors.index.json": index}
    hub.repositories |= {
        "models/someone/pickled": {**PARTS, "pytorch_model.bin": b"pickled"},
        "models/someone/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS},
        "models/someone/half": half,
        "datasets/someone/escape": {"/escaped.jsonl": ROWS["rows.jsonl"]},
        "datasets/someone/climb": {"a/../../../../../escaped.jsonl": ROWS["rows.jsonl"]},
    }
    place.fails(what, source, phrase)
    assert not any(path.name == "escaped.jsonl" for path in place.folder.rglob("*"))


def test_a_gated_model_comes_with_a_token_that_is_written_nowhere(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated.add(f"models/{MODEL}")
    source = f"{{source: {MODEL}}}"
    place.fails("model", source, "access is granted on request")
    for token, phrase in {"hf_mistyped": "the hub answered 401", hub.stranger: "access is granted on request"}.items():
        monkeypatch.setenv("HF_TOKEN", token)
        assert token not in place.fails("model", source, phrase)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert hub.token not in place.succeeds("model", source)
    assert not any(b"hf_" in path.read_bytes() for path in place.folder.rglob("*") if path.is_file())
    assert {asked.token for asked in hub.asked if "cdn/" in asked.path} == {None}, "another host got the token"


@pytest.mark.parametrize(
    ("fault", "phrase"),
    [
        (Fault(500, "api/"), "the hub answered 500. Run again later"),
        (Fault(403, "resolve/"), "the hub answered 403"),
        (Fault("page"), "the answer is not that of a hub"),
        (Fault("page", "resolve/"), "the answer is not that of a hub"),
        (Fault("silence"), "failed (ReadTimeout)"),
        (Fault("hang up"), "failed (RemoteProtocolError)"),
    ],
)
def test_a_hub_that_fails_is_one_line_until_it_recovers(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch, fault: Fault, phrase: str
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    hub.faults = [Fault(fault.kind, fault.path, ALWAYS)]
    place.fails("data", FIRST, phrase)
    hub.faults.clear()
    place.succeeds("data", FIRST)


def test_where_no_network_is_the_line_names_the_hub_and_what_needs_none(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", f"http://user:secret@{address}")
        for what in STAGES:
            source = f"{{source: {MODEL}, revision: {COMMIT}}}"
            line = place.fails(what, source, f"the connection to http://{address} failed", "profile: smollm2")
            assert "secret" not in line


def test_a_hub_that_recovers_is_asked_again_in_the_same_run(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    hub.faults += [Fault(503, "tree/"), Fault("silence", "tree/"), Fault("hang up", "cdn/")]
    place.succeeds("model", PINNED_MODEL)
    assert not any(fault.times for fault in hub.faults)


def test_wrong_bytes_are_refused(hub: Hub, place: Place) -> None:
    hub.sent_instead["model.safetensors"] = WEIGHTS[:-1]
    place.fails("model", PINNED_MODEL, "the download failed (Consistency check failed")
    hub.sent_instead["model.safetensors"] = WEIGHTS[:-1] + b"?"
    line = place.fails("model", PINNED_MODEL, f"{MODEL}/model.safetensors: its sha256 is not the hub's")
    Path(line.split("Delete ")[1].split()[0]).unlink()
    hub.sent_instead.clear()
    place.succeeds("model", PINNED_MODEL)


def test_a_wrong_sha256_is_one_line_and_the_right_one_needs_no_second_download(hub: Hub, place: Place) -> None:
    line = place.fails("model", f"{{source: {MODEL}, weights_sha256: {'a' * 64}}}", "expected sha256")
    assert sha256(WEIGHTS) in line
    place.succeeds("model", f"{{source: {MODEL}, weights_sha256: {sha256(WEIGHTS)}}}")
    assert sum(one.path.startswith("cdn/") and one.path.endswith("model.safetensors") for one in hub.asked) == 1


def test_offline_a_full_cache_is_enough_and_a_gap_in_it_is_one_line(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = f"{{source: {DATA}}}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place.fails("data", data, "HF_HUB_OFFLINE is set")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    place.succeeds("model", PINNED_MODEL)
    place.succeeds("data", data)
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place.succeeds("model", PINNED_MODEL)
    shutil.rmtree(next(place.folder.glob("hub-cache/hub/datasets--*/trees")))  # which other programs do not write
    place.succeeds("data", data)
    assert place.files("data/raw/rows") == ROWS
    next(place.folder.glob("hub-cache/hub/models--*/snapshots/*/tokenizer.json")).unlink()
    shutil.rmtree(place.folder / "models")
    place.fails("model", PINNED_MODEL, "HF_HUB_OFFLINE is set")
    assert not hub.asked


def test_a_full_disk_is_one_line_and_with_more_space_the_next_run_succeeds(hub: Hub, place: Place) -> None:
    hub.repositories[f"models/{MODEL}"]["model.safetensors"] = weights(3 << 20)
    (place.folder / "hub-cache").mkdir()
    script = f"""
        mount -t tmpfs -o size=2m tmpfs hub-cache || exit 99
        {sys.executable} -m stages.fetch_model && exit 1
        ls -A models
        mount -o remount,size=64m hub-cache
        {sys.executable} -m stages.fetch_model
    """
    place.write(model=PINNED_MODEL)
    command, environment = ["unshare", "-rm", "sh", "-c", script], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, cwd=place.folder, env=environment, capture_output=True, text=True)
    if done.returncode == 99 or done.stderr.startswith("unshare"):
        pytest.skip(f"no small disk can be mounted here: {done.stderr}")
    assert done.returncode == 0 and done.stdout.startswith("fetch_model: copied"), "the first run left something"
    assert "the disk of the cache" in done.stderr and done.stderr.count("\n") == 1, done.stderr
