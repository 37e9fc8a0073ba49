"""Model and data come from a hub, the pinned ones; what it refuses is one line that says what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.support.fetching import (
    BIG,
    DATA,
    MODEL,
    OTHERS,
    PARTS,
    ROWS,
    SHARDS,
    WEIGHTS,
    Place,
    listing,
    ranges,
    rows,
    weights,
)
from tests.support.hub import COMMIT, OLDER, Hub, sha256


def test_a_model_from_the_hub_is_the_pinned_one_without_pickles_and_code(hub: Hub, place: Place) -> None:
    digest = sha256(WEIGHTS)
    said = place.brings("model", f"{{source: {MODEL}, revision: {COMMIT}, weights_sha256: {digest}}}")
    assert place.files("models/base") == {"model.safetensors": WEIGHTS, **PARTS}
    assert f"{MODEL} at revision {COMMIT}" in said and digest in said
    assert not any(name in asked.path for asked in hub.asked for name in OTHERS)
    assert all(MODEL in asked.path or asked.path.startswith("cdn/") for asked in hub.asked), "and nothing else"


def test_the_revision_is_what_decides(hub: Hub, place: Place) -> None:
    said = place.brings("model", f"{{source: {MODEL}, revision: {OLDER}}}")
    assert OLDER in said and place.files("models/base")["model.safetensors"] == weights(500)
    said = place.brings("data", f"{{source: {DATA}}}")
    assert COMMIT in said, "a run without a revision tells which one it got"


def test_shards_of_weights_are_pinned_by_one_sha256(hub: Hub, place: Place) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": weights(100, n) for n in (1, 2)}
    index = json.dumps({"weight_map": {name: name for name in shards}}).encode()
    files = {**PARTS, **shards, "model.safetensors.index.json": index}
    hub.repositories["models/someone/sharded"] = files
    place.brings("model", f"{{source: someone/sharded, weights_sha256: {listing(shards)}}}")
    assert place.files("models/base") == files


@pytest.mark.parametrize(
    ("file", "names"),
    [
        (None, sorted(ROWS)),
        ("data/train-*.parquet", sorted(SHARDS)),
        ("data/train-[1].parquet", ["data/train-1.parquet"]),
        ("old [2].json", ["old [2].json"]),
    ],
)
def test_the_files_of_a_data_set_are_those_that_are_asked_for(
    hub: Hub, place: Place, file: str | None, names: list[str]
) -> None:
    wanted = {name: ROWS[name] for name in names}
    digest = listing(wanted) if len(wanted) > 1 else sha256(*wanted.values())
    said = place.brings("data", f"{{source: {DATA}, file: {json.dumps(file)}, sha256: {digest}}}")
    assert place.files("data/raw") == {f"rows/{name}": data for name, data in wanted.items()}
    assert digest in said


def test_held_out_rows_may_come_from_a_place_of_their_own(hub: Hub, place: Place) -> None:
    (place.folder / "mine.json").write_bytes(b"[]")
    test = f"test_source: {DATA}, test_file: rows.jsonl, test_revision: {COMMIT}"
    said = place.brings("data", f"{{source: mine.json, {test}, test_sha256: {sha256(ROWS['rows.jsonl'])}}}")
    assert place.files("data/raw") == {"rows/mine.json": b"[]", "test/rows.jsonl": ROWS["rows.jsonl"]}
    assert said.count("fetch_data: ") == 2


def test_fetching_data_imports_no_torch(hub: Hub, place: Place) -> None:
    place.write(data=f"{{source: {DATA}}}")
    code = (
        "import runpy, sys; runpy.run_module('stages.fetch_data', run_name='__main__', alter_sys=True)\n"
        "assert 'huggingface_hub' in sys.modules and not {'torch', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, check=False, cwd=place.folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# --- What a hub refuses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "source", "said"),
    [
        ("model", "{source: someone/else}", "someone/else: the hub has no such repository"),
        ("model", f"{{source: {MODEL}, revision: {'d' * 40}}}", "the hub has no such revision"),
        ("model", "{source: someone--not/x}", "not an id of the hub"),
        ("model", "{source: not a source}", "neither a path nor a hub id"),
        ("model", "{source: someone/pickled}", "no model.safetensors weights"),
        ("model", "{source: someone/adapter}", "no config.json"),
        ("model", "{source: someone/half}", "model-00002-of-00002.safetensors is missing"),
        ("data", f"{{source: {DATA}, file: nothing.jsonl}}", "no file that matches 'nothing.jsonl'"),
        ("data", "{source: someone/pictures}", "ends in .jsonl, .json, .csv, .parquet (it has 1.png, 2.png)"),
        ("data", "{source: someone/escape}", "a file outside of itself ('/escaped.jsonl')"),
        ("data", "{source: someone/climb}", "no file that ends in"),
    ],
)
def test_what_the_hub_has_not_is_one_line(hub: Hub, place: Place, what: str, source: str, said: str) -> None:
    index = b'{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    half = {**PARTS, "model-00001-of-00002.safetensors": WEIGHTS, "model.safetensors.index.json": index}
    hub.repositories |= {
        "models/someone/pickled": {**PARTS, "pytorch_model.bin": b"pickled"},
        "models/someone/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS},
        "models/someone/half": half,
        "datasets/someone/pictures": {"1.png": b"", "2.png": b""},
        "datasets/someone/escape": {"/escaped.jsonl": rows(1)},
        "datasets/someone/climb": {"../../../../escaped.jsonl": rows(1), "a/../../../../../escaped.jsonl": rows(1)},
    }
    place.fails(what, source, said)
    assert not any(path.name == "escaped.jsonl" for path in place.folder.rglob("*"))


def test_a_gated_model_comes_with_a_token_that_is_written_nowhere(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated.add(f"models/{MODEL}")
    source = f"{{source: {MODEL}}}"
    place.fails("model", source, "access is granted on request; ask for it on the hub's page, then set HF_TOKEN")
    for token, said in {"hf_mistyped": "it refuses the token", hub.stranger: "for the account of your token"}.items():
        monkeypatch.setenv("HF_TOKEN", token)
        assert token not in place.fails("model", source, said) and not place.holds(token)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert hub.token not in place.brings("model", source) and not place.holds(hub.token)
    assert place.files("models/base")["model.safetensors"] == WEIGHTS
    assert {asked.token for asked in hub.asked if "cdn/" in asked.path} == {None}, "another host got the token"


def test_a_wrong_sha256_is_one_line_and_the_right_one_needs_no_second_download(big: Hub, place: Place) -> None:
    said = place.fails("model", f"{{source: {MODEL}, weights_sha256: {'a' * 64}}}", "its sha256 is")
    digest = re.search("[0-9a-f]{64}", said)
    assert digest and digest[0] == sha256(BIG)
    place.brings("model", f"{{source: {MODEL}, weights_sha256: {digest[0]}}}")
    assert ranges(big) == [0]
