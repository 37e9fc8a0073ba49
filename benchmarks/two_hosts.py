"""Train on two hosts, lose one of them and the network between them, and see whether the bytes are those of one host.

python -m benchmarks.two_hosts [--epochs N]

Two network namespaces of Linux, joined by a cable (a veth pair), stand for two hosts. Each has its own clone of this
repository and shares no file with the other. DVC runs the training of the committed run with `processes: 2`, of one
thread each, on the first one, and the stage is started by itself on the second one. The base model then answers the
held-out rows on both.
`--epochs` is for a slow machine: fewer than the committed run has. Needs root.
"""

from __future__ import annotations

import argparse
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

from benchmarks.killing import clone_into, head, left_over, repro
from howto.core.atomic import write_json
from howto.core.hashing import sha256_of

RESULT = Path(__file__).parent / "results" / "two_hosts.json"
BEFORE = ("models/base", "data/prepared")
ADAPTER = "models/adapter/adapter_model.safetensors"
INFER = [sys.executable, "-m", "stages.infer", "--stage", "base"]
STAGE = [sys.executable, "-m", "stages.train"]
PORT = "29511"
LOST = {"second host": 0.5, "cable": 0.25, "first host": 0.75}  # after which share of the steps
LONGEST = 900.0  # seconds that any of this may take


@dataclass(frozen=True)
class Host:
    """A network namespace, the address and the end of the cable that it has, and its folder of the project."""

    number: int
    namespace: str
    address: str
    cable: str
    folder: Path

    def start(self, command: list[str], first: Host) -> subprocess.Popen[str]:
        """Start a command as one of two hosts."""
        meet = {"PET_NNODES": "2", "PET_NODE_RANK": str(self.number), "PET_MASTER_ADDR": first.address}
        said = (self.folder.parent / f"said-{self.number}.txt").open("w", encoding="utf-8")
        with said:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *command],
                cwd=self.folder,
                env={**os.environ, **meet, "PET_MASTER_PORT": PORT},
                stdout=said,
                stderr=said,
                text=True,
            )

    def said(self) -> list[str]:
        """The lines that it has printed."""
        return (self.folder.parent / f"said-{self.number}.txt").read_text(encoding="utf-8").splitlines()

    def kill(self) -> None:
        """Kill all that runs on it."""
        for pid in _ip("netns", "pids", self.namespace).split():
            os.kill(int(pid), signal.SIGKILL)

    def plug(self, state: str) -> None:
        """Put the cable `up` or `down`."""
        _ip("-n", self.namespace, "link", "set", self.cable, state)


@contextmanager
def two_hosts(folders: tuple[Path, Path]) -> Iterator[tuple[Host, Host]]:
    """Two hosts with a cable between them. When the block ends, nothing of them is left, nor of what ran on them."""
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
    """Whether this machine lets this process make such hosts."""
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
    """Wait for the processes; when each was seen to have ended, in seconds since then."""
    found: dict[int, float] = {}
    while len(found) < len(processes):
        for number, process in enumerate(processes):
            if number not in found and process.poll() is not None:
                found[number] = round(time.monotonic() - since, 1)
        if time.monotonic() - since > LONGEST:
            sys.exit(f"it did not end within {LONGEST:.0f} seconds")
        time.sleep(0.05)
    return [found[number] for number in range(len(processes))]


def wait_for_a_checkpoint(host: Host, at_least: int = 1) -> int:
    """Wait until training on the host has saved one of that step or a later one; its step."""
    until = time.monotonic() + LONGEST
    while (step := newest_step(host)) < at_least:
        if time.monotonic() > until:
            sys.exit("no checkpoint came:\n" + "\n".join(host.said()))
        time.sleep(0.02)
    return step


def newest_step(host: Host) -> int:
    """The step of the newest checkpoint, 0 without any."""
    return max((int(path.name) for path in host.folder.glob("models/checkpoints/*/[0-9]*")), default=0)


def train_to_the_end(hosts: tuple[Host, Host], first_command: list[str], wanted: str) -> dict[str, object]:
    """Train on both hosts; whether the adapter is the one of one host."""
    start = time.monotonic()
    processes = both(hosts, first_command)
    seconds = ended(processes, start)
    if any(process.returncode for process in processes):
        sys.exit("it failed:\n" + "\n".join(hosts[0].said() + hosts[1].said()))
    result: dict[str, object] = {
        "seconds": max(seconds),
        "went_on_from": next((line.split(";")[0].strip() for line in hosts[0].said() if "resumed" in line), None),
        "same_bytes_as_on_one_host": sha256_of(hosts[0].folder / ADAPTER) == wanted,
        "adapter_on_the_second_host": (hosts[1].folder / ADAPTER).exists(),
        "left_over": left_over(hosts[0].folder) + left_over(hosts[1].folder),
    }
    shutil.rmtree(hosts[0].folder / "models/adapter")
    return result


def lose(hosts: tuple[Host, Host], first_command: list[str], what: str, at_least: int) -> dict[str, object]:
    """Train to a step, and lose the first host, the second one, or the cable; how those that are left end."""
    processes = both(hosts, first_command)
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
                "said": [line for line in hosts[number].said() if line.startswith("error: ")],
            }
            for number, after in zip(left, seconds, strict=True)
        ],
        "adapter_there": (hosts[0].folder / ADAPTER).exists(),
    }


def infer(hosts: tuple[Host, Host]) -> dict[str, object]:
    """Let the base model answer the held-out rows, by one process and then on both hosts."""
    path = hosts[0].folder / "data/predictions/base.jsonl"
    start = time.monotonic()
    subprocess.run(INFER, cwd=hosts[0].folder, check=True, stdout=subprocess.DEVNULL)
    alone = round(time.monotonic() - start, 1)
    wanted = sha256_of(path)
    path.unlink()
    start = time.monotonic()
    processes = both(hosts, INFER, INFER)
    seconds = ended(processes, start)
    if any(process.returncode for process in processes):
        sys.exit("it failed:\n" + "\n".join(hosts[0].said() + hosts[1].said()))
    return {"alone_seconds": alone, "seconds": max(seconds), "same_bytes_as_alone": sha256_of(path) == wanted}


def main() -> None:
    """Run, lose, compare, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int)
    epochs = parser.parse_args().epochs
    if not can_be_made():
        sys.exit("error: two hosts cannot be made here: it takes root on Linux, the command ip, and network namespaces")
    command = repro("train")
    with tempfile.TemporaryDirectory() as name:
        folders = tuple(clone_into(Path(name) / part, BEFORE) for part in ("one", "two"))
        for folder in folders:
            edit(folder, epochs)
        start = time.monotonic()
        subprocess.run(command, cwd=folders[0], check=True, stdout=subprocess.DEVNULL)
        on_one_host = round(time.monotonic() - start, 1)
        wanted = sha256_of(folders[0] / ADAPTER)
        steps = json.loads((folders[0] / "metrics/train.json").read_text(encoding="utf-8"))["steps"]
        shutil.rmtree(folders[0] / "models/adapter")
        with two_hosts((folders[0], folders[1])) as hosts:
            undisturbed = train_to_the_end(hosts, command, wanted)
            print(json.dumps(undisturbed), flush=True)
            losses = []
            for what, share in LOST.items():
                losses.append(lose(hosts, command, what, int(share * steps)))
                losses[-1]["next_run"] = train_to_the_end(hosts, command, wanted)
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
    if not all(same) or not answered["same_bytes_as_alone"]:
        sys.exit("not the same bytes")


def edit(folder: Path, epochs: int | None) -> None:
    """Let the active profile's training take two processes of one thread each, and so many epochs."""
    path = folder / "params.yaml"
    text = path.read_text(encoding="utf-8")
    changes = {"processes: 1   ": "processes: 2   ", "threads: 2   ": "threads: 1   "}
    changes |= {"epochs: 4   ": f"epochs: {epochs}   "} if epochs else {}
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
