"""What would stop a run is found before it, with what to do; each finding is provoked for real."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from howto.check_machine import check_cores, check_cpu, check_device, check_memory_and_disk
from howto.check_network import _outside_remote, check_hub, check_remote
from howto.check_setup import (
    check_folder,
    check_git_and_dvc,
    check_locks,
    check_packages,
    check_params,
    check_python,
)
from howto.cpu import cpu
from howto.estimate import HEAVY
from howto.finding import OK, PROBLEM, WARNING, Asked, Finding, gib, output_of
from howto.params.file import read_params
from tests.conftest import ROOT, run_stage
from tests.hub import Hub, serve
from tests.in_process import edit_params

MODEL, DATA = "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "databricks/databricks-dolly-15k"
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
VARIABLES = (*TOKENS, "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "PET_NNODES")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone as far as the doctor looks, in no git repository, and an environment that says nothing."""
    for name in (
        "params.yaml",
        "pyproject.toml",
        "requirements.lock",
        "dvc.lock",
        ".dvc/config",
        "metrics/machine.json",
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
    edit_params(folder, "\nprofile: embedded", "\nprofile: tinyllama")


# --- Set up ------------------------------------------------------------------------------------------------


def test_a_python_that_is_too_old_and_one_that_will_do(project: Path) -> None:
    assert [finding.level for finding in ask(check_python)].count(PROBLEM) == 0
    replace("pyproject.toml", ">=3.11", ">=9.7")
    only(check_python, PROBLEM, "and 9.7 is needed", "make PYTHON=python9.7")


def test_packages_that_are_not_as_locked(project: Path) -> None:
    only(check_packages, OK, "as in requirements.lock")
    replace("requirements.lock", "numpy==", "numpy==0.1.")
    replace("requirements.lock", "rich==", "rich==0.1.")
    only(check_packages, WARNING, "numpy 2", "(lock: 0.1.", "rich 1", "pip install -r requirements.lock")
    (project / ".venv").mkdir()
    (project / ".venv/.installed").touch()
    with (project / "requirements.lock").open("a", encoding="utf-8") as file:
        file.write("no-such-package-of-ours==1.0\n")
    only(check_packages, PROBLEM, "not installed: no-such-package-of-ours")
    Path("requirements.lock").unlink()
    only(check_packages, PROBLEM, "cannot be read")


def test_params(project: Path) -> None:
    only(check_params, OK, "the active profile is embedded")
    edit_params(project, "r: 8  ", "rr: 8 ")
    (finding,) = check_params(Asked())
    assert finding.level == PROBLEM and "train.lora.rr: unknown key; is r meant?" in finding.said


def test_git_and_dvc(project: Path) -> None:
    only(check_git_and_dvc, PROBLEM, "git", "in no repository", "git init")
    subprocess.run(["git", "init", "-q"], check=True)
    assert not any(finding.level == PROBLEM for finding in ask(check_git_and_dvc))
    Path(".dvc/config").unlink()
    only(check_git_and_dvc, PROBLEM, "no .dvc/config", "dvc init")


@pytest.mark.parametrize(
    ("text", "level", "said"),
    [
        ("<<<<<<< HEAD\nstages: {}\n=======\n", PROBLEM, "a merge left its conflict markers in it -> git checkout"),
        ("stages: [\n", WARNING, "damaged, and `dvc repro` will not start -> `make run` mends it"),
        ("", WARNING, "damaged, and `dvc repro` will not start -> `make run` mends it"),
    ],
)
def test_a_damaged_dvc_lock(project: Path, text: str, level: str, said: str) -> None:
    only(check_locks_of_runs, OK, "dvc.lock", "7 stages")
    Path("dvc.lock").write_text(text, encoding="utf-8")
    only(check_locks, level, said)


def check_locks_of_runs(asked: Asked) -> list[Finding]:
    return [finding for finding in check_locks(asked) if finding.what == "dvc.lock"]


def test_locks_of_a_dvc_that_runs_and_of_one_that_died(project: Path) -> None:
    folder = project / ".dvc/tmp"
    folder.mkdir()
    assert [finding.level for finding in ask(check_locks)] == [OK, OK]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid, said in ((gone.pid, "which is gone"), (os.getpid(), "`dvc repro` is running here")):
        held = {"write": {"/data/raw": {"pid": pid, "cmd": "dvc repro"}}, "read": {}}
        (folder / "rwlock").write_text(json.dumps(held), encoding="utf-8")
        only(check_locks, WARNING, said)
    os.utime(folder / "rwlock", (1e9, 1e9))  # long before this process began
    only(check_locks, WARNING, f"names process {os.getpid()}, which was killed", "`python -m howto.heal`")
    (folder / "rwlock").write_text('{"write": {', encoding="utf-8")  # killed while it wrote
    only(check_locks, WARNING, "damaged, and `dvc repro` will not start", "`python -m howto.heal`")
    (folder / "rwlock").unlink()
    with (folder / "lock").open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        only(check_locks, WARNING, "a DVC is running here")
    assert [finding.level for finding in ask(check_locks)] == [OK, OK]


def test_a_damaged_rwlock_does_stop_dvc(project: Path) -> None:
    """What the doctor warns of is so, and what it advises mends it."""
    subprocess.run(["git", "init", "-q"], check=True)
    Path("dvc.yaml").write_text("stages: {make: {cmd: echo 1 > made, outs: [made]}}\n", encoding="utf-8")
    Path("dvc.lock").unlink()
    (project / ".dvc/tmp").mkdir()
    (project / ".dvc/tmp/rwlock").write_text("", encoding="utf-8")
    dvc = [str(Path(sys.executable).with_name("dvc")), "repro"]
    (finding,) = (f for f in ask(check_locks) if f.level == WARNING)
    assert "rwlock" in subprocess.run(dvc, capture_output=True, text=True, check=False).stderr.lower()
    assert "`python -m howto.heal`" in finding.to_do
    assert run_stage(project, "howto.heal").returncode == 0
    assert subprocess.run(dvc, capture_output=True, text=True, check=False).returncode == 0


def test_a_folder_that_cannot_be_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(
        check_folder,
        OK,
        "can be written",
        "copy" if "reflinks: DVC's cache takes no" not in str(ask(check_folder)) else "",
    )
    with (project / ".dvc/config").open("a", encoding="utf-8") as file:
        file.write("[cache]\n    type = hardlink\n")
    only(check_folder, OK, "outputs are links into the cache")
    monkeypatch.chdir("/sys")
    assert check_folder(Asked())[0].level == PROBLEM


# --- The machine --------------------------------------------------------------------------------------------


def test_the_device(project: Path) -> None:
    only(check_device, OK, "torch")
    edit_params(project, "processes: 1              #", "processes: 4              #")
    assert [finding.said for finding in ask(check_device)][1:] == ["4, by gloo over loopback"]
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: what is missing without one cannot be provoked")
    edit_params(project, "device: cpu ", "device: cuda")
    found = ask(check_device)[0]
    assert (
        found.level == PROBLEM and found.said.startswith("cuda is wanted: ") and "machine.device: auto" in found.to_do
    )
    use_tinyllama(project)
    only(check_device, WARNING, "no GPU (", "all is computed on the CPU", "make estimate")


def pretend(folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, memory: float) -> None:
    """Let the process that asks torch for GPUs find one that sees these."""
    (folder / "other").mkdir(exist_ok=True)
    (folder / "other/torch.py").write_text(
        "from types import SimpleNamespace as Has\n__version__, version = '2.13.0', Has(cuda='13.0')\n"
        f"gpu = Has(name='GPU of a test', total_memory={memory * 2**30}, major=8)\n"
        f"cuda = Has(is_available=lambda: True, device_count=lambda: {gpus}, get_device_properties=lambda n: gpu)\n"
        "yes = lambda: True\n"
        "distributed = Has(is_available=yes, is_gloo_available=yes, is_nccl_available=yes)\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(folder / "other"))


def test_processes_are_shared_out_to_hosts_and_each_wants_a_gpu(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(project)
    pretend(project, monkeypatch, gpus=4, memory=80)
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace("      processes: 1\n", "      processes: 8\n"), encoding="utf-8")
    only(check_device, PROBLEM, "train.processes is 8, and there are 4 GPUs")
    monkeypatch.setenv("PET_NNODES", "2")
    assert [finding.level for finding in ask(check_device)] == [OK, OK]
    assert ask(check_device)[1].said == "8, 4 of them on this host, by nccl over the network, which was not tried"
    monkeypatch.setenv("PET_NNODES", "3")
    only(check_device, PROBLEM, "8, which cannot be dealt evenly to 3 hosts (PET_NNODES)")


@pytest.mark.parametrize(
    ("memory", "level", "said"),
    [
        (80, OK, "about 25.3 GiB needed, 80.0 GiB in all"),
        (30, PROBLEM, "train does not fit on 1 x GPU of a test -> micro_batch_size: 8 would"),
        (4, PROBLEM, "infer does not fit on one GPU of a test ("),
    ],
)
def test_memory_of_a_gpu(project: Path, monkeypatch: pytest.MonkeyPatch, memory: float, level: str, said: str) -> None:
    use_tinyllama(project)
    pretend(project, monkeypatch, gpus=1, memory=memory)
    found = [finding for finding in ask(check_memory_and_disk) if finding.what == "memory of a GPU"]
    assert {finding.level for finding in found} == {level}
    assert any(said in f"{finding.said} -> {finding.to_do}" for finding in found), found


def test_each_gpu_has_a_process_that_reads_the_base_into_the_hosts_memory(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_tinyllama(project)
    for gpus in (1, 4000):
        pretend(project, monkeypatch, gpus=gpus, memory=80)
        assert needed("memory") == f"about {gib(gpus * (HEAVY + 2 * 1_100_048_384))} needed"


def test_a_base_that_is_to_be_sharded(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(project)
    pretend(project, monkeypatch, gpus=4, memory=4)
    text = Path("params.yaml").read_text(encoding="utf-8").replace("micro_batch_size: 16\n", "micro_batch_size: 1\n")
    text = text.replace("batch_size: 256\n", "batch_size: 32\n")
    Path("params.yaml").write_text(text.replace("      processes: 1\n", "      processes: 4\n"), encoding="utf-8")
    (found,) = (finding for finding in ask(check_memory_and_disk) if finding.what == "memory of a GPU")
    assert found.level == PROBLEM and found.to_do == "set train.fsdp: true, which shards it over the 4 processes"
    text = Path("params.yaml").read_text(encoding="utf-8").replace("      fsdp: false\n", "      fsdp: true\n")
    Path("params.yaml").write_text(text, encoding="utf-8")
    (found,) = (finding for finding in ask(check_memory_and_disk) if finding.what == "memory of a GPU")
    assert found.level != PROBLEM, found


def test_a_torch_that_cannot_be_imported(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "broken").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(project / "broken"))
    for code, said in (
        ("raise ImportError('libgomp.so.1: cannot open shared object file')", "libgomp.so.1: cannot open"),
        ("import os; os.abort()", "it ended with -6"),
    ):
        (project / "broken/torch.py").write_text(code, encoding="utf-8")
        only(check_device, PROBLEM, "cannot be imported", said, "--force-reinstall torch")


def needed(what: str) -> str:
    """The part of what is said of memory or disk that does not depend on what is free just now."""
    return next(finding.said for finding in ask(check_memory_and_disk) if finding.what == what).partition(",")[0]


def test_too_little_memory_and_disk(project: Path) -> None:
    assert {finding.level for finding in ask(check_memory_and_disk)} == {OK}
    use_tinyllama(project)
    assert needed("disk") == "about 6.6 GiB needed", "models/base, DVC's copy and the hub's cache"
    (project / "models/base").mkdir(parents=True)
    (project / "models/base/config.json").write_text("{}", encoding="utf-8")  # of the profile that ran before
    assert needed("disk") == "about 6.6 GiB needed"
    revision = read_params().value("profiles.tinyllama.model.revision")
    kept = project / f"hub/hub/models--{MODEL.replace('/', '--')}/snapshots/{revision}/model.safetensors"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert needed("disk") == "about 4.5 GiB needed", "the hub's cache has it"
    shutil.rmtree(project / "models")
    edit_params(project, "\nprofile: tinyllama", "\nprofile: embedded")
    alone = needed("memory")
    edit_params(project, "processes: 1              #", "processes: 4              #")
    assert needed("memory") != alone
    edit_params(project, "processes: 4              #", "processes: 1              #")
    edit_params(project, "hidden_size: 160", "hidden_size: 131072")
    edit_params(project, "layers: 3 ", "layers: 200 ")
    found = ask(check_memory_and_disk)
    assert {(finding.what, finding.level) for finding in found} == {("memory", PROBLEM), ("disk", PROBLEM)}
    assert all("GiB needed, " in finding.said and finding.to_do for finding in found)


def test_what_a_model_that_nobody_knows_needs_cannot_be_told(project: Path) -> None:
    use_tinyllama(project)
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace(MODEL, "someone/model"), encoding="utf-8")
    only(check_memory_and_disk, WARNING, "cannot be told: the shape of someone/model is not known")


def test_cores(project: Path) -> None:
    edit_params(project, "threads: 2 ", "threads: 1000 ")
    only(check_cores, WARNING, "machine.threads: 1000")
    edit_params(project, "threads: 1000 ", "threads: 1 ")
    only(check_cores, OK, "of which machine.threads takes 1")


def test_more_processes_than_cores(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    edit_params(project, "threads: 2 ", "threads: 1 ")
    edit_params(project, "processes: 1 ", f"processes: {2 * cores} ")
    only(check_cores, WARNING, f"{2 * cores} processes of machine.threads: 1 each", "lower train.processes, or take")
    edit_params(project, f"processes: {2 * cores} ", f"processes: {cores} ")
    edit_params(project, "threads: 1 ", "threads: 2 ")
    if cores > 1:
        only(check_cores, WARNING, f"{cores} processes of machine.threads: 2 each", "set machine.threads: 1")
    edit_params(project, f"processes: {cores} ", f"processes: {2 * cores} ")
    edit_params(project, "threads: 2 ", "threads: 1 ")
    monkeypatch.setenv("PET_NNODES", "2")
    only(check_cores, OK, "of which machine.threads takes 1")


def test_the_kind_of_cpu_beside_that_of_the_committed_run(project: Path) -> None:
    model, instructions = cpu()
    path = Path("metrics/machine.json")
    for facts, status, said in (
        ({"cpu": model, "instructions": instructions}, OK, "the very kind of metrics/machine.json"),
        ({"cpu": model, "instructions": f"{instructions} avx9000"}, WARNING, "of another kind"),
        ({"cpu": "Some Other CPU, 6, 85, 7", "instructions": instructions}, WARNING, "of another kind"),
        ({}, WARNING, "metrics/machine.json is damaged"),
    ):
        path.write_text(json.dumps({"facts": facts}), encoding="utf-8")
        only(check_cpu, status, said)
    path.unlink()
    only(check_cpu, OK, model.split(",")[0])


# --- The network ---------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def a_hub() -> Hub:
    files = {f"models/{MODEL}": {"config.json": b"{}"}, f"datasets/{DATA}": {"databricks-dolly-15k.jsonl": b"{}"}}
    return Hub(repositories=files)


def test_the_embedded_profile_needs_no_hub(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    only(check_hub, OK, "not needed")


def test_a_hub_that_cannot_be_reached(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(project)
    monkeypatch.setenv("HF_ENDPOINT", f"http://user:secret@127.0.0.1:{closed_port()}")
    found = ask(check_hub)
    assert [finding.what for finding in found] == [f"hub, {MODEL}", f"hub, {DATA}"]
    assert all(finding.level == PROBLEM and "cannot be reached" in finding.said for finding in found)
    assert not any("secret" in str(finding) for finding in found)


def test_a_hub_that_has_it_and_one_that_wants_a_token(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(project)
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


def test_two_files_of_one_repository_are_two_questions(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(project)
    text = Path("params.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "      revision:" not in line]
    before, profile, after = "\n".join(lines).partition("\n  tinyllama:\n")
    held_out = f"      test_source: {DATA}\n      test_file: nowhere.jsonl\n"
    after = after.replace("    machine:\n", held_out + "    machine:\n", 1)
    Path("params.yaml").write_text(before + profile + after, encoding="utf-8")
    with serve(a_hub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        found = [finding for finding in ask(check_hub) if finding.what == f"hub, {DATA}"]
    assert sorted(finding.level for finding in found) == [OK, PROBLEM]


@pytest.mark.parametrize(
    ("file", "asked"), [("my rows.jsonl", "/resolve/main/my rows.jsonl"), ("train-0000?.parquet", None)]
)
def test_a_file_with_a_blank_in_its_name_and_a_pattern(
    project: Path, monkeypatch: pytest.MonkeyPatch, file: str, asked: str | None
) -> None:
    use_tinyllama(project)
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


def test_a_hub_that_is_silent_does_not_hold_the_doctor_up(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(project)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("howto.check_network.TIMEOUT", 0.2)
        assert all(finding.level == PROBLEM and "timed out" in finding.said for finding in ask(check_hub))


def test_offline_the_cache_has_to_have_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_tinyllama(project)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [finding.level for finding in ask(check_hub)] == [PROBLEM, PROBLEM]
    kept = project / f"hub/hub/models--{MODEL.replace('/', '--')}/snapshots/abc/config.json"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert [finding.level for finding in ask(check_hub)] == [OK, PROBLEM]


def remote(url: str) -> None:
    Path(".dvc/config").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {url}\n", encoding="utf-8"
    )


def test_the_remote(project: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    only(check_remote, OK, "none; `dvc remote add")
    remote("../elsewhere")
    only(check_remote, WARNING, f"{project / 'elsewhere'} is not there", "mount it")
    (project / "elsewhere").mkdir()
    only(check_remote, OK, f"{project / 'elsewhere'} is there")
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


def test_a_remote_that_dvc_itself_is_asked_for(project: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    remote("nothing://somewhere/store")
    only(check_remote, PROBLEM, "DVC's remote store: cannot be reached: ", "your credentials")
    (project / "elsewhere").mkdir()
    remote("../elsewhere")
    assert _outside_remote("a folder", "file://elsewhere") == Finding(OK, "a folder", "answers")
    (project / "elsewhere").rmdir()
    assert _outside_remote("a folder", "file://elsewhere") == Finding(OK, "a folder", "answers, and is empty")


def test_a_remote_that_is_named_on_this_machine_alone(project: Path) -> None:
    Path(".dvc/config.local").write_text("[core]\n    remote = mine\n", encoding="utf-8")
    only(check_remote, PROBLEM, "DVC's remote mine", "has no URL")


# --- The command ---------------------------------------------------------------------------------------------


def test_all_is_well_in_a_finished_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q"], check=True)
    done = run_stage(project, "howto.doctor")
    assert done.returncode == 0 and done.stderr == "", done
    assert done.stdout.splitlines()[-1].endswith("this machine can run the active profile")
    assert len(done.stdout.splitlines()) < 25, "one screen"
    edit_params(project, "r: 8  ", "rr: 8 ")
    done = run_stage(project, "howto.doctor")
    assert done.returncode == 1 and "1 problem, " in done.stdout and "a run would not get through" in done.stdout
    edit_params(project, "rr: 8 ", "r: 8  ")
    remote(f"http://127.0.0.1:{closed_port()}/store")
    done = run_stage(project, "howto.doctor")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("a run would get through, `make push` and `make pull` would not")


def test_without_any_package_it_says_what_it_can(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "howto.doctor"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == "", done.stderr
    assert "are not there; what needs them was not checked -> `make run` installs them" in done.stdout
    assert "ok       Python: 3." in done.stdout and "disk: " in done.stdout and "memory: " in done.stdout
    assert "params.yaml: could not be checked: No module named " in done.stdout
    assert done.returncode == 1, "git is asked for without any package too"
    assert "problem  git: this folder is in no repository" in done.stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_in_a_terminal_it_is_a_table_that_fits(project: Path, columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "howto.doctor"],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "PYTHONPATH": str(ROOT), "TERM": "dumb"},
    )  # fmt: skip
    os.close(theirs)
    said = bytearray()
    reader = threading.Thread(target=read_all, args=(ours, said))
    reader.start()
    assert process.wait(timeout=60) == 1
    reader.join()
    lines = said.decode().splitlines()
    assert max(map(len, lines)) <= columns
    assert any(line.lstrip().startswith("-> ") for line in lines), "what to do stands on a line of its own"
    assert len(lines) < 50, "one screen"


def read_all(end: int, said: bytearray) -> None:
    """Until the other end is closed, which Linux tells as an error."""
    try:
        while part := os.read(end, 4096):
            said += part
    except OSError:
        pass
    finally:
        os.close(end)
