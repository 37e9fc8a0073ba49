"""A hub, a network, a disk or a cache in trouble: what can go on goes on, and the rest is one line."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios

import pytest

from tests.conftest import ROOT
from tests.support.fetching import (
    BIG,
    DATA,
    FOREVER,
    MEBI,
    MODEL,
    PARTS,
    ROWS,
    STAGES,
    WEIGHTS,
    Place,
    ranges,
    run_by_anyone,
)
from tests.support.hub import COMMIT, Fault, Hub, forward, sha256


def test_a_hub_that_recovers_is_asked_again_in_the_same_run(hub: Hub, place: Place) -> None:
    hub.faults += [Fault("refuse", "api/"), Fault("refuse", "cdn/"), Fault("refuse", "resolve/")]
    place.brings("model", f"{{source: {MODEL}, revision: {COMMIT}}}")
    assert not any(fault.times for fault in hub.faults)
    assert place.files("models/base")["model.safetensors"] == WEIGHTS


def test_a_hub_that_stays_in_trouble_is_one_line_until_it_recovers(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    source = f"{{source: {DATA}, file: rows.jsonl}}"
    for fault, said in (
        (Fault("refuse", "", FOREVER), "the hub answered 500: it has troubles of its own; run again later"),
        (Fault("forbid", "resolve/", FOREVER), "the hub answered 403: it may not be read with this token"),
        (Fault("page", "", FOREVER), "the answer is not one of a hub"),
        (Fault("silence", "", FOREVER), "the hub went silent for 1 s; run again"),
        (Fault("hang up", "", FOREVER), "the connection broke (RemoteProtocolError); run again"),
    ):
        hub.faults[:] = [fault]
        place.fails("data", source, said)
    hub.faults.clear()
    place.brings("data", source)


def test_a_stalled_download_ends_and_the_next_run_goes_on_from_there(
    big: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    big.faults.append(Fault("stall", "cdn/", FOREVER, offset=11 * MEBI))
    source = f"{{source: {MODEL}, revision: {COMMIT}, weights_sha256: {sha256(BIG)}}}"
    place.fails("model", source, "the hub went silent for 1 s; run again")
    big.faults.clear()
    big.asked.clear()
    place.brings("model", source)
    assert ranges(big) == [10 * MEBI]
    assert place.files("models/base")["model.safetensors"] == BIG


def test_a_killed_download_goes_on_in_the_next_run(big: Hub, place: Place) -> None:
    big.faults.append(Fault("stall", "cdn/", offset=11 * MEBI))
    source = f"{{source: {MODEL}}}"
    place.write(model=source)
    stage = subprocess.Popen(
        [sys.executable, "-m", "stages.fetch_model"], cwd=place.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert big.stalled.wait(60)
    (part,) = place.folder.glob("hub-cache/hub/*/blobs/*.incomplete")
    while part.stat().st_size < 10 * MEBI:
        assert stage.poll() is None
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    assert not (place.folder / "models/base").exists()
    big.asked.clear()
    place.brings("model", source)
    assert ranges(big) == [10 * MEBI]
    assert place.files("models") == {f"base/{n}": d for n, d in {"model.safetensors": BIG, **PARTS}.items()}


@pytest.mark.parametrize("honours_ranges", [True, False])
def test_a_body_cut_short_is_resumed_in_the_same_run(big: Hub, place: Place, honours_ranges: bool) -> None:
    big.faults.append(Fault("cut", "cdn/", offset=11 * MEBI))
    big.ranges = honours_ranges
    place.brings("model", f"{{source: {MODEL}}}")
    assert ranges(big) == [0, 10 * MEBI]
    assert place.files("models/base")["model.safetensors"] == BIG


def test_a_connection_that_is_reset_is_taken_up_again_in_the_same_run(big: Hub, place: Place) -> None:
    big.faults.append(Fault("reset", "cdn/", offset=11 * MEBI))
    place.brings("model", f"{{source: {MODEL}}}")
    assert len(ranges(big)) == 2, "what came before a reset may be lost, so that it is not known where the second began"
    assert place.files("models/base")["model.safetensors"] == BIG


def test_a_small_file_cut_short_is_whole_in_the_end(hub: Hub, place: Place) -> None:
    hub.faults.append(Fault("cut", "resolve/", offset=5))
    place.brings("data", f"{{source: {DATA}, file: rows.jsonl}}")
    assert place.files("data/raw/rows") == {"rows.jsonl": ROWS["rows.jsonl"]}


def test_wrong_bytes_never_stay_in_the_cache(hub: Hub, place: Place) -> None:
    source = f"{{source: {MODEL}}}"
    hub.sent_instead["model.safetensors"] = WEIGHTS[:-1] + b"?"
    place.fails("model", source, f"{MODEL}/model.safetensors: damaged on its way or in the cache")
    hub.sent_instead["model.safetensors"] = WEIGHTS[:-1]
    place.fails("model", source, "the download is damaged (Consistency check failed")
    hub.sent_instead.clear()
    place.brings("model", source)
    (blob,) = place.folder.glob(f"hub-cache/hub/*/blobs/{sha256(WEIGHTS)}")
    blob.write_bytes(WEIGHTS[:-1] + b"!")
    shutil.rmtree(place.folder / "models")
    place.fails("model", source, "damaged on its way or in the cache")
    place.brings("model", source)
    assert place.files("models/base")["model.safetensors"] == WEIGHTS


def test_a_file_that_the_pin_refuses_is_fetched_anew_though_its_etag_is_the_same(hub: Hub, place: Place) -> None:
    source = f"{{source: {DATA}, file: rows.jsonl, sha256: {sha256(ROWS['rows.jsonl'])}}}"
    hub.sent_instead["rows.jsonl"] = ROWS["rows.jsonl"].replace(b"So", b"No")
    place.fails("data", source, f"{DATA}: its sha256 is")
    hub.sent_instead.clear()
    place.brings("data", source)
    assert place.files("data/raw/rows") == {"rows.jsonl": ROWS["rows.jsonl"]}


def test_offline_a_full_cache_is_enough_and_a_gap_in_it_is_one_line(
    hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = f"{{source: {MODEL}, revision: {COMMIT}}}", f"{{source: {DATA}}}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place.fails("data", data, "HF_HUB_OFFLINE is set and the cache has not all of it")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    place.brings("model", model)
    place.brings("data", data)
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    place.brings("model", model)
    shutil.rmtree(next(place.folder.glob("hub-cache/hub/datasets--*/trees")))  # not all programs that fill it list all
    place.brings("data", data)
    assert place.files("data/raw/rows") == ROWS
    next(place.folder.glob("hub-cache/hub/models--*/snapshots/*/tokenizer.json")).unlink()
    shutil.rmtree(place.folder / "models")
    place.fails("model", model, "HF_HUB_OFFLINE is set and the cache has not all of it")
    assert not hub.asked


def test_a_full_cache_that_cannot_be_written_is_enough(hub: Hub, place: Place) -> None:
    source = f"{{source: {MODEL}, revision: {COMMIT}}}"
    place.brings("model", source)
    shutil.rmtree(place.folder / "models")
    cache = place.folder / "hub-cache"
    shutil.rmtree(cache / "hub/.locks")
    folders = [path for path in (cache, *cache.rglob("*")) if path.is_dir() and not path.is_symlink()]
    for path in folders:
        path.chmod(0o555)
    done = run_by_anyone(place.folder, "stages.fetch_model")
    for path in folders:
        path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert place.files("models/base") == {"model.safetensors": WEIGHTS, **PARTS}


def test_no_network_stops_at_once_and_names_the_profile_that_needs_none(hub: Hub, place: Place) -> None:
    with socket.socket() as free:  # a port on which nothing listens
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        os.environ["HF_ENDPOINT"] = f"http://user:secret@{address}"
        for what in STAGES:
            source = f"{{source: {MODEL}, revision: {COMMIT}}}"
            said = place.fails(what, source, f"no network: the hub (http://{address}) cannot be reached")
            assert "profile: smollm2" in said and "secret" not in said


def test_requests_go_through_a_proxy(hub: Hub, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.test")  # a name that the proxy alone can resolve
    source = f"{{source: {MODEL}}}"
    with forward(hub, "hub.test", login="Basic bWU6c2VjcmV0") as (address, asked):
        monkeypatch.setenv("HTTP_PROXY", address)
        place.fails("model", source, "the hub answered 407: the proxy wants a login")
        monkeypatch.setenv("HTTP_PROXY", address.replace("//", "//me:secret@"))
        assert "secret" not in place.brings("model", source) and not place.holds("secret")
    assert place.files("models/base")["model.safetensors"] == WEIGHTS
    assert set(asked) == {"hub.test", hub.address.replace("http://127.0.0.1", "localhost")}


def test_no_request_waits_for_ever(hub: Hub, place: Place) -> None:
    hub.faults.append(Fault("silence", times=FOREVER))
    code = (
        "import os; from huggingface_hub import get_session, set_client_factory\n"
        "from howto.sources.hub import bounded_client\n"
        "set_client_factory(bounded_client)\n"
        "try: get_session().get(os.environ['HF_ENDPOINT'], timeout=None)\n"
        "except Exception as error: print(type(error).__name__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "ReadTimeout\n", done.stderr


@pytest.mark.parametrize("disk", ["hub-cache", "models"])
def test_a_full_disk_is_one_line_and_with_more_space_the_next_run_succeeds(big: Hub, place: Place, disk: str) -> None:
    (place.folder / disk).mkdir()
    script = f"""
        mount -t tmpfs -o size=11m tmpfs {disk} || {{ echo no mount; exit; }}
        {sys.executable} -m stages.fetch_model; echo "exit $?"
        ls -A models 2> /dev/null
        mount -o remount,size=64m {disk}
        {sys.executable} -m stages.fetch_model; echo "exit $?"
        sha256sum < models/base/model.safetensors
    """
    place.write(model=f"{{source: {MODEL}}}")
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        check=False,
        cwd=place.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if not done.stdout or done.stdout == "no mount\n":
        pytest.skip(f"no small disk can be mounted here: {done.stderr}")
    full, said, free, digest = done.stdout.splitlines()
    assert (full, free) == ("exit 1", "exit 0") and said.startswith("fetch_model: downloaded"), done.stdout
    where = {
        "hub-cache": r"error: .*: the disk of the cache \(.*hub-cache.*\) is full",
        "models": "error: models/.*full",
    }
    assert re.match(where[disk], done.stderr) and done.stderr.count("\n") == 1, done.stderr
    assert digest.split()[0] == sha256(BIG)
    assert len(ranges(big)) == (2 if disk == "hub-cache" else 1) and ranges(big)[-1] >= 10 * MEBI * (
        len(ranges(big)) - 1
    )


def test_a_person_sees_how_far_and_how_fast_and_nothing_else(big: Hub, place: Place) -> None:
    place.write(model=f"{{source: {MODEL}}}")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    stage = subprocess.Popen(
        [sys.executable, "-m", "stages.fetch_model"], cwd=place.folder, env=environment, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    lines = re.split("[\r\n]+", shown.decode().replace("\x1b[A", "").strip())
    assert stage.wait() == 0 and lines[-1].startswith("fetch_model: downloaded")
    bars = [line for line in lines[:-1] if line.strip()]
    assert all(line.startswith(("model.safetensors: ", "tokenizer.model: ")) for line in bars), lines
    assert any(re.search(r"100%\|.*12.6M/12.6M \[\d\d:\d\d<\d\d:\d\d, +[\d.]+MB/s\]", line) for line in bars), lines
