"""Model and data come from a hub at the pinned revision; what fails is one line that says what to do.

Both are downloaded by howto/sources/hub.py. What it does with an answer is tested with data, whose stage starts faster.
"""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.fetching import (
    DATA,
    MODEL,
    OLD_ROWS,
    OLDER_WEIGHTS,
    OTHERS,
    OUTPUTS,
    PARTS,
    ROWS,
    SHARDS,
    WEIGHTS,
    Place,
    listing,
)
from tests.support.hub import COMMIT, OLDER, Fault, Hub, sha256

PINNED = f"{{source: {DATA}, revision: {COMMIT}}}"
FIRST = f"{{source: {DATA}, file: rows.jsonl}}"
SHARD = "data/train-0.parquet"  # the hub stores it as a large file
ALWAYS = 1 << 30


def test_a_model_is_the_pinned_one_without_pickles_and_code(hub: Hub, place: Place) -> None:
    digest = sha256(OLDER_WEIGHTS)
    printed = place.succeeds("model", f"{{source: {MODEL}, revision: {OLDER}, weights_sha256: {digest}}}")
    assert place.files("models/base") == {"model.safetensors": OLDER_WEIGHTS, **PARTS}
    assert f"{MODEL} at revision {OLDER}" in printed and digest in printed
    assert not any(name in asked.path for asked in hub.asked for name in OTHERS)
    assert all(MODEL in asked.path or asked.path.startswith("cdn/") for asked in hub.asked), "something else was asked"


def test_the_files_of_a_data_set_are_the_selected_ones_of_the_revision_which_is_reported(
    hub: Hub, place: Place
) -> None:
    shard = ROWS[SHARD]
    sources = [
        f"all: {{source: {DATA}, sha256: {listing(ROWS)}}}",
        f"several: {{source: {DATA}, file: 'data/train-*.parquet', sha256: {listing(SHARDS)}}}",
        f"pattern: {{source: {DATA}, file: 'data/train-[0].parquet', sha256: {sha256(shard)}}}",
        f"name: {{source: {DATA}, file: 'old [2].json', sha256: {sha256(ROWS['old [2].json'])}}}",
        f"older: {{source: {DATA}, revision: {OLDER}, sha256: {sha256(OLD_ROWS['old.json'])}}}",
    ]
    printed = place.succeeds("data", f"{{sources: {{{', '.join(sources)}}}}}").splitlines()
    files = {"all": ROWS, "several": SHARDS, "pattern": {SHARD: shard}, "older": OLD_ROWS}
    files["name"] = {"old [2].json": ROWS["old [2].json"]}
    found = place.files("data/raw/rows")
    assert found == {f"{part}/{name}": data for part, those in files.items() for name, data in those.items()}
    assert all((OLDER if line.endswith("/older") else COMMIT) in line for line in printed) and len(printed) == 5


# --- What fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "source", "phrase"),
    [
        ("model", "{source: someone/else}", "someone/else: the hub has no such repository"),
        ("model", f"{{source: {MODEL}, revision: {'d' * 40}}}", "the hub has no such revision"),
        ("model", "{source: not a source}", "expected a path or a hub id"),
        ("model", "{source: someone/pickled}", "no model.safetensors weights"),
        ("model", "{source: someone/adapter}", "no config.json"),
        ("data", f"{{source: {DATA}, file: nothing.jsonl}}", "no file that matches 'nothing.jsonl'"),
        ("data", "{source: someone/escape}", "a file outside of itself, '/escaped.jsonl'"),
        ("data", "{source: someone/climb}", "a file outside of itself"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub: Hub, place: Place, what: str, source: str, phrase: str) -> None:
    hub.repositories |= {
        "models/someone/pickled": {**PARTS, "pytorch_model.bin": b"pickled"},
        "models/someone/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": WEIGHTS},
        "datasets/someone/escape": {"/escaped.jsonl": ROWS["rows.jsonl"]},
        "datasets/someone/climb": {"a/../../../../../escaped.jsonl": ROWS["rows.jsonl"]},
    }
    place.fails(what, source, phrase)
    assert not any(path.name == "escaped.jsonl" for path in place.folder.rglob("*"))


def test_a_gated_source_comes_with_a_token_that_is_written_nowhere(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated |= {f"models/{MODEL}", f"datasets/{DATA}"}
    source = f"{{source: {DATA}}}"
    for what, gated in {"model": f"{{source: {MODEL}}}", "data": source}.items():
        place.fails(what, gated, "access is granted on request")
    for token, phrase in {"hf_mistyped": "the hub answered 401", hub.stranger: "access is granted on request"}.items():
        monkeypatch.setenv("HF_TOKEN", token)
        assert token not in place.fails("data", source, phrase)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert hub.token not in place.succeeds("data", source)
    assert not any(b"hf_" in path.read_bytes() for path in place.folder.rglob("*") if path.is_file())
    assert {asked.token for asked in hub.asked if "cdn/" in asked.path} == {None}, "another host got the token"


def test_a_hub_that_fails_is_one_line_until_it_recovers(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    for fault, phrase in (
        (Fault(500, "api/", ALWAYS), "the hub answered 500. Run again later"),
        (Fault("page", "", ALWAYS), "the answer is not that of a hub"),
        (Fault("silence", "", ALWAYS), "failed (ReadTimeout)"),
        (Fault("hang up", "", ALWAYS), "failed (RemoteProtocolError)"),
        (Fault(403, "resolve/", ALWAYS), "the hub answered 403"),
        (Fault("page", "resolve/", ALWAYS), "the answer is not that of a hub"),
    ):
        hub.faults = [fault]
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
        for what in OUTPUTS:
            source = f"{{source: {MODEL}, revision: {COMMIT}}}"
            line = place.fails(what, source, f"the connection to http://{address} failed", "profile: smollm2")
            assert "secret" not in line


def test_a_hub_that_recovers_is_asked_again_in_the_same_run(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    hub.faults += [Fault(503, "tree/"), Fault("silence", "tree/"), Fault("hang up", "cdn/")]
    place.succeeds("data", PINNED)
    assert not any(fault.times for fault in hub.faults)


def test_wrong_bytes_are_refused(hub: Hub, place: Place) -> None:
    hub.sent_instead[SHARD] = ROWS[SHARD][:-1]
    place.fails("data", PINNED, "the download failed (Consistency check failed")
    hub.sent_instead[SHARD] = ROWS[SHARD][:-1] + b"?"
    line = place.fails("data", PINNED, f"{DATA}/{SHARD}: its sha256 is not the hub's")
    Path(line.split("Delete ")[1].split()[0]).unlink()
    hub.sent_instead.clear()
    place.succeeds("data", PINNED)


def test_a_wrong_sha256_is_one_line_and_the_right_one_needs_no_second_download(hub: Hub, place: Place) -> None:
    source, digest = f"{{source: {DATA}, file: {SHARD}, sha256: ", sha256(ROWS[SHARD])
    place.fails("data", f"{source}{'a' * 64}}}", f"expected sha256 {'a' * 64}, got {digest}")
    place.succeeds("data", f"{source}{digest}}}")
    assert sum(one.path.startswith("cdn/") for one in hub.asked) == 1


def test_offline_a_full_cache_is_enough_and_a_gap_in_it_is_one_line(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = f"{{source: {MODEL}, revision: {COMMIT}}}"
    place.succeeds("data", PINNED)
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place.fails("model", model, "HF_HUB_OFFLINE is set")
    place.succeeds("data", PINNED)
    (cache,) = place.folder.glob("hub-cache/hub/datasets--*")
    (link,) = cache.glob("snapshots/*/rows.jsonl")
    blob = link.readlink()
    link.unlink()
    shutil.rmtree(place.folder / "data")
    place.fails("data", PINNED, "HF_HUB_OFFLINE is set")
    link.symlink_to(blob)
    shutil.rmtree(cache / "trees")  # which other programs do not write
    done = place.fetch("data", PINNED)
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "They may not be all" in done.stderr
    assert place.files("data/raw/rows") == ROWS
    assert not hub.asked


def test_a_full_disk_is_one_line_and_with_more_space_the_next_run_succeeds(hub: Hub, place: Place) -> None:
    hub.repositories[f"datasets/{DATA}"][SHARD] = bytes(3 << 20)
    (place.folder / "hub-cache").mkdir()
    script = f"""
        mount -t tmpfs -o size=2m tmpfs hub-cache || exit 99
        {sys.executable} -m stages.fetch_data && exit 1
        ls -A data
        mount -o remount,size=64m hub-cache
        {sys.executable} -m stages.fetch_data
    """
    place.write(data=PINNED)
    command, environment = ["unshare", "-rm", "sh", "-c", script], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, check=False, cwd=place.folder, env=environment, capture_output=True, text=True)
    if done.returncode == 99 or done.stderr.startswith("unshare"):
        pytest.skip(f"no small disk can be mounted here: {done.stderr}")
    assert done.returncode == 0 and done.stdout.startswith("fetch_data: downloaded"), "the first run left something"
    assert "the disk of the cache" in done.stderr and done.stderr.count("\n") == 1, done.stderr
