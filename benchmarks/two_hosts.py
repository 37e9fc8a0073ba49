"""Train on two hosts, lose one of them or the network between them, and compare the bytes with those of one host.

python -m benchmarks.two_hosts

The hosts are two network namespaces of Linux, joined by a cable (a veth pair). Each has its own clone of this
repository and shares no file with the other. With `processes: 2` of one thread each, DVC runs the training on the first
host, and the stage runs by itself on the second. Then the base model answers the held-out rows on both. Needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kills import ROOT, clone_into, head, left_over
from experiments.pipeline import params_with
from howto.core.atomic import write_json
from howto.core.hashing import sha256_of
from howto.params import read_params

RESULT = Path(__file__).parent / "results" / "two_hosts.json"
BEFORE = ("models/base", "data/prepared")
ADAPTER = "models/adapter/adapter_model.safetensors"
TRAIN = ["dvc", "repro", "--single-item", "--force", "train"]
INFER = [sys.executable, "-m", "stages.infer", "--stage", "base"]
STAGE = [sys.executable, "-m", "stages.train"]
PORT = "29511"
LOST = {"second host": 0.5, "cable": 0.25, "first host": 0.75}  # after this share of the steps
TIMEOUT = 900.0  # seconds


@dataclass(frozen=True)
class Host:
    """A network namespace, with its address, its end of the cable, and its folder of the project."""

    number: int
    namespace: str
    address: str
    cable: str
    folder: Path

    def start(self, command: list[str], first: Host) -> subprocess.Popen[str]:
        """Start a command as one of two hosts."""
        rendezvous = {"PET_NNODES": "2", "PET_NODE_RANK": str(self.number), "PET_MASTER_ADDR": first.address}
        with self._log.open("w", encoding="utf-8") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command],
                cwd=self.folder,
                env={**os.environ, **rendezvous, "PET_MASTER_PORT": PORT},
                stdout=log,
                stderr=log,
                text=True,
            )

    @property
    def _log(self) -> Path:
        return self.folder.parent / f"log-{self.number}.txt"

    def lines(self) -> list[str]:
        """Return the lines that the last command has printed."""
        return self._log.read_text(encoding="utf-8").splitlines()

    def kill(self) -> None:
        """Kill everything that runs on it."""
        for pid in _ip("netns", "pids", self.namespace).split():
            os.kill(int(pid), signal.SIGKILL)

    def plug(self, state: str) -> None:
        """Put the cable `up` or `down`."""
        _ip("-n", self.namespace, "link", "set", self.cable, state)


@contextmanager
def two_hosts(folders: tuple[Path, Path]) -> Iterator[tuple[Host, Host]]:
    """Yield two hosts with a cable between them. At the end, remove them and kill what runs on them."""
    name = f"howto{os.getpid()}"
    first, second = (
        Host(number, f"{name}-{number}", f"10.213.57.{number + 1}", f"ht{os.getpid()}-{number}", folder)
        for number, folder in enumerate(folders)
    )
    try:
        for host in (first, second):
            _ip("netns", "add", host.namespace)
        _ip("-n", first.namespace, "link", "add", first.cable, "type", "veth", "peer", "name", second.cable,
            "netns", second.namespace)  # fmt: skip
        for host in (first, second):
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/30", "dev", host.cable)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            host.plug("up")
        yield first, second
    finally:
        for host in (first, second):
            if host.namespace in _ip("netns", "list"):
                host.kill()
                _ip("netns", "del", host.namespace)


def can_be_made() -> bool:
    """Return whether this process may make such hosts on this machine."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
        return False
    try:
        with two_hosts((Path(), Path())):
            return True
    except subprocess.CalledProcessError:
        return False


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def both(
    hosts: tuple[Host, Host], first_command: list[str], second_command: list[str] = STAGE
) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Start a stage on both."""
    return hosts[0].start(first_command, hosts[0]), hosts[1].start(second_command, hosts[0])


def ended(processes: tuple[subprocess.Popen[str], ...], since: float) -> list[float]:
    """Wait for the processes; return when each one ended, in seconds after `since`."""
    found: dict[int, float] = {}
    while len(found) < len(processes):
        for number, process in enumerate(processes):
            if number not in found and process.poll() is not None:
                found[number] = round(time.monotonic() - since, 1)
        if time.monotonic() - since > TIMEOUT:
            sys.exit(f"it did not end within {TIMEOUT:.0f} seconds")
        time.sleep(0.05)
    return [found[number] for number in range(len(processes))]


def wait_for_a_checkpoint(host: Host, at_least: int = 1) -> int:
    """Wait until training on the host has saved a checkpoint of that step or a later one; return its step."""
    until = time.monotonic() + TIMEOUT
    while (step := newest_step(host)) < at_least:
        if time.monotonic() > until:
            sys.exit("no checkpoint came:\n" + "\n".join(host.lines()))
        time.sleep(0.02)
    return step


def newest_step(host: Host) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    return max((int(path.name) for path in host.folder.glob("models/checkpoints/*/[0-9]*")), default=0)


def train_to_the_end(hosts: tuple[Host, Host], expected: str) -> dict[str, object]:
    """Train on both hosts; report whether the adapter has the hash `expected`."""
    start = time.monotonic()
    processes = both(hosts, TRAIN)
    seconds = ended(processes, start)
    if any(process.returncode for process in processes):
        sys.exit("it failed:\n" + "\n".join(hosts[0].lines() + hosts[1].lines()))
    result: dict[str, object] = {
        "seconds": max(seconds),
        "same_bytes_as_on_one_host": sha256_of(hosts[0].folder / ADAPTER) == expected,
        "adapter_on_the_second_host": (hosts[1].folder / ADAPTER).exists(),
        "left_over": left_over(hosts[0].folder) + left_over(hosts[1].folder),
    }
    shutil.rmtree(hosts[0].folder / "models/adapter")
    return result


def lose(hosts: tuple[Host, Host], what: str, at_least: int) -> dict[str, object]:
    """Train to a step, and lose the first host, the second one, or the cable; report how the others end."""
    processes = both(hosts, TRAIN)
    step = wait_for_a_checkpoint(hosts[0], at_least)
    start = time.monotonic()
    if what == "cable":
        hosts[1].plug("down")
        left = [0, 1]
    else:
        lost = 0 if what == "first host" else 1
        hosts[lost].kill()
        left = [1 - lost]
    seconds = ended(tuple(processes[number] for number in left), start)
    for process in processes:
        process.wait()
    hosts[1].plug("up")
    return {
        "lost": what,
        "at_step": step,
        "those_left": [
            {
                "host": number + 1,
                "ended_after_seconds": after,
                "exit_status": processes[number].returncode,
                "errors": [line for line in hosts[number].lines() if line.startswith("error: ")],
            }
            for number, after in zip(left, seconds, strict=True)
        ],
        "adapter_there": (hosts[0].folder / ADAPTER).exists(),
    }


def infer(hosts: tuple[Host, Host]) -> dict[str, object]:
    """Let the base model answer the held-out rows, in one process and then on both hosts."""
    path = hosts[0].folder / "data/predictions/base.jsonl"
    start = time.monotonic()
    subprocess.run(INFER, cwd=hosts[0].folder, check=True, stdout=subprocess.DEVNULL)
    one_process = round(time.monotonic() - start, 1)
    expected = sha256_of(path)
    path.unlink()
    start = time.monotonic()
    processes = both(hosts, INFER, INFER)
    seconds = ended(processes, start)
    if any(process.returncode for process in processes):
        sys.exit("it failed:\n" + "\n".join(hosts[0].lines() + hosts[1].lines()))
    same = sha256_of(path) == expected
    return {"one_process_seconds": one_process, "seconds": max(seconds), "same_bytes_as_one_process": same}


def main() -> None:
    """Run, lose, compare, and keep the results."""
    if not can_be_made():
        sys.exit("error: two hosts cannot be made here. This needs root on Linux, network namespaces, and `ip`.")
    with tempfile.TemporaryDirectory() as name:
        folders = tuple(clone_into(Path(name) / part, BEFORE) for part in ("one", "two"))
        for folder in folders:
            profile = read_params(ROOT / "params.yaml").profile
            changes = {"machine.threads": 1, f"profiles.{profile}.train.processes": 2}
            (folder / "params.yaml").write_text(params_with(changes), encoding="utf-8")
        start = time.monotonic()
        subprocess.run(TRAIN, cwd=folders[0], check=True, stdout=subprocess.DEVNULL)
        on_one_host = round(time.monotonic() - start, 1)
        expected = sha256_of(folders[0] / ADAPTER)
        steps = json.loads((folders[0] / "metrics/train.json").read_text(encoding="utf-8"))["steps"]
        shutil.rmtree(folders[0] / "models/adapter")
        with two_hosts((folders[0], folders[1])) as hosts:
            undisturbed = train_to_the_end(hosts, expected)
            print(json.dumps(undisturbed), flush=True)
            losses = []
            for what, share in LOST.items():
                losses.append(lose(hosts, what, int(share * steps)))
                losses[-1]["next_run"] = train_to_the_end(hosts, expected)
                print(json.dumps(losses[-1]), flush=True)
            answered = infer(hosts)
    result: dict[str, object] = {
        **head("two_hosts"),
        "steps": steps,
        "two_processes_on_one_host_seconds": on_one_host,
        "undisturbed": undisturbed,
        "losses": losses,
        "inference": answered,
    }
    write_json(RESULT, result)
    runs = [undisturbed, *(loss["next_run"] for loss in losses)]
    same = [isinstance(run, dict) and run["same_bytes_as_on_one_host"] for run in runs]
    if not all(same) or not answered["same_bytes_as_one_process"]:
        sys.exit("not the same bytes")


if __name__ == "__main__":
    main()
