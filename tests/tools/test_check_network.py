"""What the doctor finds of the hub and of DVC's remote, each answered by a real server."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from howto.tools.check_network import _outside_remote, check_hub, check_remote
from howto.tools.finding import OK, PROBLEM, WARNING, Finding, output_of
from tests.support.doctoring import DATA, MODEL, ask, closed_port, only, remote, use_tinyllama
from tests.support.hub import Hub, serve


def a_hub() -> Hub:
    files = {f"models/{MODEL}": {"config.json": b"{}"}, f"datasets/{DATA}": {"databricks-dolly-15k.jsonl": b"{}"}}
    return Hub(repositories=files)


def test_the_default_profile_needs_no_hub(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    only(check_hub, OK, "not needed")


def test_a_hub_that_cannot_be_reached(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(examined)
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:secret@127.0.0.1:{closed_port()}")
    found = ask(check_hub)
    assert [finding.what for finding in found] == [f"hub, {MODEL}", f"hub, {DATA}"]
    assert all(finding.level == PROBLEM and "cannot be reached" in finding.said for finding in found)
    assert not any("secret" in str(finding) for finding in found)


def test_a_hub_that_has_it_and_one_that_wants_a_token(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(examined)
    text = Path("params.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "      revision:" not in line]
    Path("params.yaml").write_text("\n".join(lines).replace("test_source: ../dollyeval.jsonl", "test_source: null"))
    with serve(a_hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        assert [finding.level for finding in ask(check_hub)] == [OK, OK], ask(check_hub)
        assert {asked.method for asked in hub.asked} == {"HEAD"}, "nothing is fetched"
        hub.gated.add(f"models/{MODEL}")
        only(check_hub, PROBLEM, "answered 40", "HF_TOKEN")
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert [finding.level for finding in ask(check_hub)] == [OK, OK]
        assert not any(hub.token in str(finding) for finding in ask(check_hub))
        del hub.repositories[f"datasets/{DATA}"]
        only(check_hub, PROBLEM, f"hub, {DATA}", "answered 40")


def test_two_files_of_one_repository_are_two_questions(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(examined)
    text = Path("params.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "      revision:" not in line]
    before, profile, after = "\n".join(lines).partition("\n  tinyllama:\n")
    held_out = f"      test_source: {DATA}\n      test_file: nowhere.jsonl\n"
    after = after.replace("    prepare:\n", held_out + "    prepare:\n", 1)
    Path("params.yaml").write_text(before + profile + after, encoding="utf-8")
    with serve(a_hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        found = [finding for finding in ask(check_hub) if finding.what == f"hub, {DATA}"]
    assert sorted(finding.level for finding in found) == [OK, PROBLEM]


@pytest.mark.parametrize(
    ("file", "asked"), [("my rows.jsonl", "/resolve/main/my rows.jsonl"), ("train-0000?.parquet", None)]
)
def test_a_file_with_a_blank_in_its_name_and_a_pattern(
    examined: Path, monkeypatch: pytest.MonkeyPatch, file: str, asked: str | None
) -> None:
    use_tinyllama(examined)
    text = Path("params.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "      revision:" not in line]
    changed = "\n".join(lines).replace("databricks-dolly-15k.jsonl", f'"{file}"')
    Path("params.yaml").write_text(changed, encoding="utf-8")
    files = {f"models/{MODEL}": {"config.json": b"{}"}, f"datasets/{DATA}": {file: b"{}"}}
    with serve(Hub(repositories=files)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        assert [finding.level for finding in ask(check_hub)] == [OK, OK], ask(check_hub)
        paths = [one.path for one in hub.asked if DATA in one.path]
    assert all(path.endswith(asked or "/revision/main") for path in paths) and paths


def test_what_is_asked_has_no_terminal_to_ask_for_a_password_on() -> None:
    session = "import os; print(os.getsid(0) == os.getpid())"
    assert output_of(sys.executable, "-c", session) == (0, "True\n", "")


def test_a_hub_that_is_silent_does_not_hold_the_doctor_up(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(examined)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("howto.tools.check_network.TIMEOUT", 0.2)
        assert all(finding.level == PROBLEM and "timed out" in finding.said for finding in ask(check_hub))


def test_offline_the_cache_has_to_have_it(examined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(examined)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [finding.level for finding in ask(check_hub)] == [PROBLEM, PROBLEM]
    kept = examined / f"hub/hub/models--{MODEL.replace('/', '--')}/snapshots/abc/config.json"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert [finding.level for finding in ask(check_hub)] == [OK, PROBLEM]


def test_the_remote(examined: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    only(check_remote, OK, "none; `dvc remote add")
    remote("../elsewhere")
    only(check_remote, WARNING, f"{examined / 'elsewhere'} is not there", "mount it")
    (examined / "elsewhere").mkdir()
    only(check_remote, OK, f"{examined / 'elsewhere'} is there")
    remote("hdfs://namenode/store")
    only(check_remote, PROBLEM, "dvc-hdfs is not installed", "pip install dvc-hdfs")
    remote(f"http://127.0.0.1:{closed_port()}/store")
    only(check_remote, PROBLEM, "DVC's remote store", "cannot be reached")
    with serve(Hub()) as hub:
        remote(f"{hub.address}/store")
        only(check_remote, WARNING, f"{hub.address} answers 401", "dvc remote modify --local")
    server = ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    remote(f"http://127.0.0.1:{server.server_port}/store")
    only(check_remote, OK, f"http://127.0.0.1:{server.server_port} answers")
    server.shutdown()
    server.server_close()
    Path(".dvc/config").write_text("[core\n", encoding="utf-8")
    only(check_remote, PROBLEM, ".dvc/config cannot be read", "git checkout")


def test_a_remote_that_dvc_itself_is_asked_for(examined: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    remote("nothing://somewhere/store")
    only(check_remote, PROBLEM, "DVC's remote store: cannot be reached: ", "your credentials")
    (examined / "elsewhere").mkdir()
    remote("../elsewhere")
    assert _outside_remote("a folder", "file://elsewhere") == Finding(OK, "a folder", "answers")
    (examined / "elsewhere").rmdir()
    assert _outside_remote("a folder", "file://elsewhere") == Finding(OK, "a folder", "answers, and is empty")


def test_a_remote_that_is_named_on_this_machine_alone(examined: Path) -> None:
    Path(".dvc/config.local").write_text("[core]\n    remote = mine\n", encoding="utf-8")
    only(check_remote, PROBLEM, "DVC's remote mine", "has no URL")
