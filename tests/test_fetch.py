"""Model and data come from the project itself, from a local path, or from a hub; what fails says what to do."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from howto.model_folder import check_model
from howto.shards import local_shards
from howto.source import row_files
from howto.stop import Stop
from tests.conftest import ROOT, run_stage
from tests.hub import COMMIT, OLDER, Fault, Hub, forward, serve, sha256

MODEL, DATA = "someone/small-chat", "someone/how-to"
MEBI = 1 << 20
FOREVER = 1 << 30
STAGES = {"model": "stages.fetch_model", "data": "stages.fetch_data"}
OUTPUTS = {"model": "models", "data": "data"}


def weights(size: int, seed: int = 0) -> bytes:
    """Safetensors of about `size` bytes."""
    return bytes(save({"weight": np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)}))


def rows(count: int, word: str = "") -> bytes:
    """JSONL."""
    lines = [json.dumps({"instruction": f"How {word}{n}?", "response": "1. So."}) for n in range(count)]
    return "".join(line + "\n" for line in lines).encode()


def listing(files: Mapping[str, bytes]) -> str:
    """The sha256 of what `sha256sum` prints for several files."""
    text = "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()


WEIGHTS = weights(1000)
BIG = weights(12 * MEBI)  # a piece of 10 MiB, as the library writes them, and a rest
PARTS = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer.model": b"sentencepiece",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"Apache-2.0",
}
# What is not brought: pickles, code, weights in another format, and what transformers does not load.
OTHERS = {
    "pytorch_model.bin": b"pickled",
    "training_args.pt": b"pickled",
    "modeling.py": b"print('remote code')",
    "onnx/model.safetensors": b"x",
    "original/config.json": b"x",
    "consolidated.safetensors": b"x",
    "README.md": b"# A model",
}
SHARDS = {"data/train-0.parquet": b"PAR1 zero", "data/train-1.parquet": b"PAR1 one"}
ROWS = {"rows.jsonl": rows(9), "old [2].json": b"[]", "more/part.csv": b"instruction,response\nHow?,So.\n", **SHARDS}
ABOUT = {"README.md": b"# Rows", ".gitattributes": b"", "dataset_infos.json": b"{}", "data/.hidden.jsonl": b"{}"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a model and a data set, an empty cache, and an environment that says nothing else."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("HF_"):
            monkeypatch.delenv(name)
    repositories = {
        f"models/{MODEL}": {"model.safetensors": WEIGHTS, **PARTS, **OTHERS},
        f"datasets/{DATA}": {**ROWS, **ABOUT},
    }
    older = {f"models/{MODEL}": {"model.safetensors": weights(500), **PARTS}, f"datasets/{DATA}": {"old.json": b"[]"}}
    with serve(Hub(repositories, older)) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-cache"))
        yield served


@pytest.fixture
def big(hub: Hub) -> Hub:
    """The hub with weights so large that a part of them can be kept."""
    hub.repositories[f"models/{MODEL}"]["model.safetensors"] = BIG
    return hub


class Place:
    """A folder with a params.yaml, in which stages fetch."""

    def __init__(self, folder: Path, params: str) -> None:
        self.folder, self._params = folder, params

    def write(self, *, model: str | None = None, data: str | None = None) -> None:
        """Write params.yaml with another `model` and `data` of the embedded profile (YAML flow mappings)."""
        text = self._params
        start = text.index("\n    model:\n")
        middle = text.index("\n    data:\n", start)
        end = text.index("\n    machine:\n", middle)
        model_text = f"\n    model: {model}" if model else text[start:middle]
        data_text = f"\n    data: {data}" if data else text[middle:end]
        params = text[:start] + model_text + data_text + text[end:]
        (self.folder / "params.yaml").write_text(params, encoding="utf-8")

    def fetch(self, what: str, source: str) -> subprocess.CompletedProcess[str]:
        """Run the stage that fetches the "model" or the "data"."""
        self.write(**{what: source})
        return run_stage(self.folder, STAGES[what])

    def brings(self, what: str, source: str) -> str:
        """The stage succeeds, and is quiet on stderr. Gives what it printed."""
        done = self.fetch(what, source)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout

    def fails(self, what: str, source: str, said: str) -> str:
        """The stage ends with one line, and leaves nothing. Gives the line."""
        done = self.fetch(what, source)
        assert done.returncode == 1 and not done.stdout
        assert done.stderr.startswith("error: ") and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
        output = self.folder / OUTPUTS[what]
        assert not output.exists() or not list(output.iterdir())
        return done.stderr

    def files(self, folder: str) -> dict[str, bytes]:
        """Names, relative to `folder`, and bytes of what lies there."""
        root = self.folder / folder
        assert not any(path.is_symlink() for path in root.rglob("*"))
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def holds(self, text: str) -> bool:
        """Whether a file here, or in the cache, holds `text`."""
        return any(text.encode() in path.read_bytes() for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def place(tmp_path: Path, small_params: str) -> Place:
    return Place(tmp_path, small_params)


def run_by_anyone(folder: Path, stage: str) -> subprocess.CompletedProcess[str]:
    """Run a stage without root's right to read and write everything."""
    rights = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    return subprocess.run(
        [*rights, sys.executable, "-m", stage],
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def ranges(hub: Hub) -> list[int]:
    """From where the large weights were asked for."""
    asked = [
        a.range or "bytes=0-" for a in hub.asked if a.method == "GET" and re.match("cdn/.*/model.safetensors", a.path)
    ]
    return [int(value.removeprefix("bytes=").rstrip("-")) for value in asked]


# --- From the hub ---------------------------------------------------------------------------------------


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


# --- A hub, a network and a cache in trouble --------------------------------------------------------------


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


def test_no_network_stops_at_once_and_names_the_embedded_profile(hub: Hub, place: Place) -> None:
    with socket.socket() as free:  # a port on which nothing listens
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        os.environ["HF_ENDPOINT"] = f"http://user:secret@{address}"
        for what in STAGES:
            source = f"{{source: {MODEL}, revision: {COMMIT}}}"
            said = place.fails(what, source, f"no network: the hub (http://{address}) cannot be reached")
            assert "profile: embedded" in said and "secret" not in said


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
        "import os; from huggingface_hub import get_session, set_client_factory; from howto.hub import bounded_client\n"
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


# --- From this machine ----------------------------------------------------------------------------------


def lay(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_a_local_model_folder_may_consist_of_links(place: Place) -> None:
    blobs = lay(place.folder / "blobs", {"model.safetensors": WEIGHTS, **PARTS, **OTHERS})
    snapshot = place.folder / "snapshot"
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    said = place.brings("model", "{source: ./snapshot}")
    assert place.files("models/base") == {"model.safetensors": WEIGHTS, **PARTS} and sha256(WEIGHTS) in said


@pytest.mark.parametrize(
    ("files", "more", "said"),
    [
        ({}, "", "mine: no such folder"),
        ({"config.json": b"{}"}, "", "mine: no model.safetensors weights"),
        ({"model.safetensors": WEIGHTS}, "", "mine: not a Hugging Face model (no config.json in it)"),
        ({"model.safetensors": WEIGHTS[:-9], **PARTS}, "", "mine/model.safetensors: not whole safetensors weights"),
        ({**PARTS, "model.safetensors": b"version https://git-lfs.github.com/spec/v1"}, "", "a git-lfs pointer"),
        ({**PARTS, "model.safetensors": WEIGHTS, "config.json": b"{"}, "", "mine/config.json: not a JSON object"),
        ({**PARTS, "model.safetensors": WEIGHTS}, f", weights_sha256: {'a' * 64}", "its sha256 is"),
        ({**PARTS, "model.safetensors": WEIGHTS}, ", revision: main", "a local path, which has no revision"),
    ],
)
def test_a_local_model_that_cannot_be_used_is_one_line(
    place: Place, files: dict[str, bytes], more: str, said: str
) -> None:
    lay(place.folder / "mine", files)
    place.fails("model", f"{{source: ./mine{more}}}", said)


def test_a_model_that_needs_code_of_its_own_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "llama", "auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    lay(tmp_path, {"model.safetensors": WEIGHTS, "config.json": json.dumps(config).encode()})
    assert check_model(tmp_path, "mine") == ["model.safetensors"], "transformers has this architecture itself"
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "unheard-of"}), encoding="utf-8")
    with pytest.raises(Stop, match=r"mine: config.json asks for code from the repository \(auto_map\)"):
        check_model(tmp_path, "mine")


def test_local_rows_are_copied_as_they_are_with_their_sha256(place: Place) -> None:
    lay(place.folder / "mine", {**ROWS, **ABOUT, "b/dataset_info.json": b"{}", ".git/x.json": b"{}"})
    text = subprocess.run(
        ["sha256sum", *sorted(ROWS)], check=True, cwd=place.folder / "mine", capture_output=True
    ).stdout
    said = place.brings("data", f"{{source: mine, sha256: {sha256(text)}}}")
    assert place.files("data/raw") == {f"rows/{name}": data for name, data in ROWS.items()}
    assert f"{len(ROWS)} files, sha256 {sha256(text)}" in said
    said = place.brings("data", "{source: mine, file: rows.jsonl, test_source: ./mine, test_file: '*.parquet'}")
    tests = {f"test/{name}": data for name, data in SHARDS.items()}
    assert place.files("data/raw") == {"rows/rows.jsonl": ROWS["rows.jsonl"], **tests}
    assert f"1 file, sha256 {sha256(ROWS['rows.jsonl'])}" in said


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "ROWS.CSV"])
def test_a_single_file_of_each_format_is_taken(tmp_path: Path, name: str) -> None:
    path = lay(tmp_path, {name: b"x"}) / name
    assert local_shards(path, None, "data.source") == {name: path}
    link = tmp_path / f"link{path.suffix}"
    link.symlink_to(path)
    assert local_shards(link, None, "data.source") == {link.name: link}, "what is named may be a link"


def test_links_within_a_data_folder_are_followed_once(tmp_path: Path) -> None:
    lay(tmp_path, {"elsewhere.md": b""})
    folder = lay(tmp_path / "mine", {"b.jsonl": b"b", "v2/a.jsonl": b"a", ".store/c.jsonl": b"c"})
    (folder / "latest.jsonl").symlink_to("b.jsonl")
    (folder / "stored").symlink_to(".store")
    (folder / "v2" / "up").symlink_to("..")
    (folder / "README.md").symlink_to(tmp_path / "elsewhere.md")
    (tmp_path / "link").symlink_to(folder)
    names = ["b.jsonl", "latest.jsonl", "stored/c.jsonl", "v2/a.jsonl"]
    assert list(local_shards(tmp_path / "link", None, "data.source")) == names


def leave(folder: Path) -> None:
    (folder / "mine" / "out.jsonl").symlink_to(folder / "secret.jsonl")


def leave_by_folder(folder: Path) -> None:
    (folder / "mine" / "out").symlink_to(folder)


def lead_nowhere(folder: Path) -> None:
    (folder / "mine" / "out").symlink_to("nothing")


def be_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "mine" / "out.jsonl")


def lock_file(folder: Path) -> None:
    (folder / "mine" / "rows.jsonl").chmod(0)


def lock_folder(folder: Path) -> None:
    (folder / "mine" / "data").chmod(0)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (leave, "mine/out.jsonl: a link that leaves its data folder"),
        (leave_by_folder, "mine/out: a link that leaves its data folder"),
        (lead_nowhere, "mine/out: a link that leads nowhere"),
        (be_a_pipe, "mine/out.jsonl: neither a file nor a folder"),
        (lock_file, "mine/rows.jsonl: no permission"),
        (lock_folder, "mine/data: no permission"),
    ],
)
def test_a_data_folder_that_cannot_be_copied_is_one_line(place: Place, damage, said: str) -> None:  # type: ignore[no-untyped-def]
    lay(place.folder, {"secret.jsonl": b"secret"})
    lay(place.folder / "mine", ROWS)
    damage(place.folder)
    place.write(data="{source: mine}")
    done = run_by_anyone(place.folder, "stages.fetch_data")
    (place.folder / "mine" / "data").chmod(0o755)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1, done.stderr
    assert not list((place.folder / "data").iterdir())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{source: ./nowhere.jsonl}", "nowhere.jsonl: no such file"),
        ("{source: params.yaml}", "ends in .jsonl, .json, .csv, .parquet is wanted"),
        (f"{{source: rows.jsonl, sha256: {'a' * 64}}}", "rows.jsonl: its sha256 is"),
        (f"{{source: two, sha256: {'a' * 64}}}", "two: its sha256 is"),
        ("{source: rows.jsonl, revision: main}", "has no revision"),
        ("{source: pictures}", "pictures: no file that ends in .jsonl, .json, .csv, .parquet (it has a.png)"),
        ("{source: .}", "it overlaps with data/raw"),
        ("{source: rows.jsonl, test_source: ./nowhere}", "mend data.test_source"),
        ("{source: rows.jsonl, test_file: rows.jsonl}", "test_file is given without test_source"),
        ("{source: embedded, seed: 1, rows: 100000}", "the embedded world is too small"),
    ],
)
def test_data_that_cannot_be_had_is_one_line_and_leaves_nothing(place: Place, data: str, said: str) -> None:
    lay(place.folder, {"rows.jsonl": b"{}\n", "pictures/a.png": b"", "two/a.jsonl": b"a", "two/b.jsonl": b"b"})
    place.fails("data", data, said)


@pytest.mark.parametrize(
    ("source", "pattern", "said"),
    [
        ("nowhere", None, "nowhere: no such file or folder"),
        ("rows.jsonl", "rows.jsonl", "is a single file"),
        ("two", "c.jsonl", "two: no file that matches 'c.jsonl' .*it has a.jsonl, b.jsonl"),
        ("empty", None, "empty: no file that ends in .*it is empty"),
        ("many", None, "it has 0.png, 1.png, 2.png, 3.png, 4.png, ..."),
    ],
)
def test_where_no_rows_are_the_line_says_what_is_there(
    tmp_path: Path, source: str, pattern: str | None, said: str
) -> None:
    lay(
        tmp_path,
        {"rows.jsonl": b"", "two/a.jsonl": b"", "two/b.jsonl": b"", **{f"many/{n}.png": b"" for n in range(6)}},
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(Stop, match=said):
        local_shards(tmp_path / source, pattern, "data.source")


def test_the_embedded_rows_are_made_where_others_are_brought(place: Place) -> None:
    place.write()
    done = run_stage(place.folder, "stages.fetch_data")
    assert done.returncode == 0, done.stderr
    assert list(place.files("data/raw")) == ["rows/embedded.jsonl"]


def test_rows_are_chosen_by_name() -> None:
    names = ["b.json", "a.jsonl", "c/d.csv", "c/.d.csv", "state.json", "c/dataset_info.json", "x.txt"]
    assert row_files(names, None, "here", "data.source") == ["a.jsonl", "b.json", "c/d.csv"]
    assert row_files(names, "c/*", "here", "data.source") == ["c/d.csv"]
    with pytest.raises(Stop, match=r"here: no file that matches 'x.txt' .* mend data.source"):
        row_files(names, "x.txt", "here", "data.source")
