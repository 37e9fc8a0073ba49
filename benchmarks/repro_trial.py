"""One `dvc repro` that is killed, and the next one: what benchmarks/killed_repro.py repeats."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from benchmarks.killing import ROOT

STAGES = ("fetch_model", "fetch_data", "prepare", "train", "infer@base", "infer@adapter", "evaluate")
SIGNALS = ("SIGINT", "SIGTERM", "SIGKILL")
TARGETS = ("dvc", "stage", "group")
PATIENCE = 10.0  # seconds until what still runs counts as going on
LOOK = 0.02  # seconds between two looks at the processes
HEAL = [sys.executable, "-m", "howto", "recover"]


@dataclass(frozen=True)
class Aim:
    """Who is sent which signal, and when: so many seconds after DVC began, or after the stage's process ended."""

    stage: str
    signal: str
    target: str
    seconds: float
    after_its_end: bool = False


@dataclass(frozen=True)
class Times:
    """How long DVC takes for a stage, and how much of it after the stage's process has ended."""

    seconds: float
    seconds_after: float


class Undisturbed:
    """A run that nothing disturbs, and the clone as it was before each stage."""

    def __init__(self, folder: Path, *, small: bool) -> None:
        """Work in `folder`, which is empty."""
        # What a shell starts in the background ignores SIGINT, and so would DVC: a signal handler is not handed on.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.folder, self.clone = folder, folder / "clone"
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
        }
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.clone)], check=True)
        (self.clone / "dvc.lock").unlink()
        for path in (self.clone / "metrics").iterdir():
            path.unlink()
        if small:
            from tests.conftest import smaller
            from tests.support.tiny import write_model, write_rows

            write_model(folder / "tiny/model")
            write_rows(folder / "tiny/rows.jsonl")
            params = self.clone / "params.yaml"
            text = smaller(params.read_text(encoding="utf-8"), folder / "tiny")
            params.write_text(text, encoding="utf-8")
        self.times = {}
        for stage in STAGES:
            shutil.copytree(self.clone, self._before(stage), symlinks=True)
            self.times[stage] = self._run(stage)
        shutil.copytree(self.clone, folder / "end", symlinks=True)
        self.lock = lock_of(self.clone)
        self.outputs = {path: digest(self.clone / path) for path in outputs(self.clone)}

    def seconds(self) -> list[float]:
        """How long each stage takes."""
        return [self.times[stage].seconds for stage in STAGES]

    def go_back_to(self, stage: str) -> None:
        """The clone as it was before the stage, with a cache that knows all but this stage."""
        shutil.rmtree(self.clone)
        shutil.rmtree(self.folder / "site", ignore_errors=True)
        shutil.copytree(self._before(stage), self.clone, symlinks=True)
        before, end = self._before(stage) / ".dvc/cache", self.folder / "end/.dvc/cache"
        number = STAGES.index(stage) + 1
        after = self._before(STAGES[number]) / ".dvc/cache" if number < len(STAGES) else end
        made_by_it = _files(after) - _files(before)
        for name in _files(end) - made_by_it - _files(before):
            (self.clone / ".dvc/cache" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(end / name, self.clone / ".dvc/cache" / name)

    def start(self, log: Path, *arguments: str) -> subprocess.Popen[str]:
        """`dvc repro` in a process group of its own."""
        with log.open("wb") as file:
            return subprocess.Popen(
                ["dvc", "repro", *arguments],
                cwd=self.clone, env=self.environment, stdout=file, stderr=file, start_new_session=True, text=True,
            )  # fmt: skip

    def is_the_same(self, path: str) -> bool:
        """Whether the output is there, and the undisturbed run's."""
        return digest(self.clone / path) == self.outputs.get(path)

    def call(self, command: list[str]) -> tuple[int, str]:
        """The status of a command in the clone, and what it said."""
        done = subprocess.run(command, check=False, cwd=self.clone, env=self.environment, capture_output=True)
        return done.returncode, (done.stdout + done.stderr).decode()

    def _before(self, stage: str) -> Path:
        return self.folder / f"before-{stage}"

    def _run(self, stage: str) -> Times:
        start = time.monotonic()
        log = self.folder / "said.txt"
        with self.start(log, "--single-item", stage) as dvc:
            ended = start
            while dvc.poll() is None:
                if stage_processes(dvc):
                    ended = time.monotonic()
                time.sleep(LOOK)
        if dvc.returncode:
            sys.exit(f"{stage} failed without a kill:\n{log.read_text(encoding='utf-8')}")
        end = time.monotonic()
        return Times(end - start, end - ended)


def trial(whole: Undisturbed, aim: Aim) -> dict[str, object]:
    """Kill as aimed, look at what is left, and complete the run."""
    whole.go_back_to(aim.stage)
    log = whole.folder / "said.txt"
    began = time.monotonic()
    with whole.start(log) as dvc:
        wait_for_the_moment(dvc, aim)
        until_then = time.monotonic() - began
        there = stage_processes(dvc)
        family = psutil.Process(dvc.pid).children(recursive=True) if _lives(dvc) else []
        hit = send(dvc, there, aim)
        start = time.monotonic()
        # SIGINT to DVC alone means nothing to it while a stage runs: it goes on, and rightly so.
        goes_on_rightly = aim.signal == "SIGINT" and aim.target == "dvc" and bool(there)
        alive = end_of(dvc, family, 600 if goes_on_rightly else PATIENCE)
        seconds = time.monotonic() - start
    said = log.read_text(encoding="utf-8", errors="replace")
    files = outputs(whole.clone)
    half = [path for path in files if (whole.clone / path).exists() and not whole.is_the_same(path)]
    how, again, message = complete(whole)
    return {
        "stage": aim.stage,
        "signal": aim.signal,
        "target": aim.target,
        "after_seconds": round(aim.seconds, 2),
        "counted_from": "the stage's end" if aim.after_its_end else "DVC's start",
        "hit": hit,
        "until_then_seconds": round(until_then, 2),
        "dvc_status": dvc.returncode,
        "stack_trace": said[said.index("Traceback") :][-300:] if "Traceback" in said else "",
        "seconds_until_all_ended": None if goes_on_rightly else round(seconds, 1),
        "goes_on": alive,
        "outputs_that_dvc_was_writing": half,
        "next_repro": how,
        **({"it_said": message} if message else {}),
        "ran_again": again,
        "same_bytes": all(whole.is_the_same(path) for path in whole.outputs) and whole.lock == lock_of(whole.clone),
        "left_over": left_over(whole.clone),
    }


def wait_for_the_moment(dvc: subprocess.Popen[str], aim: Aim) -> None:
    """Wait until it is time to kill, or DVC has ended."""
    if aim.after_its_end:
        while _lives(dvc) and not stage_processes(dvc, aim.stage):
            time.sleep(LOOK)
        while _lives(dvc) and stage_processes(dvc, aim.stage):
            time.sleep(LOOK / 4)
    until = time.monotonic() + aim.seconds
    while _lives(dvc) and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, LOOK))
    while aim.target == "stage" and _lives(dvc) and not stage_processes(dvc):
        time.sleep(LOOK)


def end_of(dvc: subprocess.Popen[str], family: list[psutil.Process], patience: float) -> list[str]:
    """Wait for the end of DVC and of what it had started; the commands of those that had to be ended here."""
    until = time.monotonic() + patience
    found = []
    try:
        dvc.wait(patience)
    except subprocess.TimeoutExpired:
        dvc.kill()
        found.append("dvc repro")
    _, alive = psutil.wait_procs(family, max(until - time.monotonic(), 0))
    for process in alive:
        found.append(" ".join(_command(process)))
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return found


def send(dvc: subprocess.Popen[str], there: list[psutil.Process], aim: Aim) -> str:
    """Send the signal; what was hit."""
    number = signal.Signals[aim.signal]
    stages = " and ".join(sorted({stage_of(process) for process in there}))
    if not _lives(dvc):
        return "nothing: DVC had ended"
    if aim.target == "stage":
        for process in there:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        return stages or "nothing: no stage was at work"
    if aim.target == "dvc":
        os.kill(dvc.pid, number)
    else:
        os.killpg(dvc.pid, number)
    return f"DVC during {stages}" if stages else "DVC between stages"


def complete(whole: Undisturbed) -> tuple[str, list[str], str]:
    """Say `dvc repro`, after `heal` if it fails by itself: how it went, which stages ran, and what DVC said if not."""
    status, said = whole.call(["dvc", "repro"])
    if not status:
        return "completed", stages_run(said), ""
    first = said
    _, healed = whole.call(HEAL)
    status, said = whole.call(["dvc", "repro"])
    how = "failed also after heal" if status else "completed after heal"
    return how, stages_run(said), f"{first.strip()} | {healed.strip()}{f' | {said.strip()}' if status else ''}"


def stages_run(said: str) -> list[str]:
    """The stages that DVC ran, and did not take from its cache."""
    return re.findall(r"Running stage '([^']+)'", said)


def stage_processes(dvc: subprocess.Popen[str], stage: str = "") -> list[psutil.Process]:
    """The processes of stages that DVC has started, or of the one stage."""
    with suppress(psutil.NoSuchProcess):
        children = psutil.Process(dvc.pid).children(recursive=True)
        return [one for one in children if stage_of(one) and (not stage or stage_of(one) == stage)]
    return []


def stage_of(process: psutil.Process) -> str:
    """The name of the stage that a process runs, or nothing."""
    command = _command(process)
    if len(command) < 3 or command[1] != "-m" or not command[2].startswith("stages."):
        return ""
    name = command[2].removeprefix("stages.")
    return f"infer@{command[4]}" if name == "infer" else name


def _command(process: psutil.Process) -> list[str]:
    try:
        return [str(part) for part in process.cmdline()]
    except psutil.Error:
        return []


def _lives(process: subprocess.Popen[str]) -> bool:
    return process.poll() is None


def outputs(clone: Path) -> list[str]:
    """Every output, metric and plot that dvc.yaml names."""
    stages = YAML(typ="safe").load((clone / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    found = []
    for stage in stages.values():
        one = stage.get("do", stage)
        names = [
            *one.get("outs", []),
            *(name for kind in ("metrics", "plots") for each in one.get(kind, []) for name in each),
        ]
        found += [name.replace("${key}", key) for name in names for key in stage.get("foreach", [""])]
    return sorted(set(found))


def digest(path: Path) -> str:
    """The sha256 of a file, or of all names and bytes of a folder; nothing, if it is not there."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if not path.is_dir():
        return ""
    files = [f"{file.relative_to(path)} {digest(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()


def lock_of(clone: Path) -> object:
    """What dvc.lock says."""
    return YAML(typ="safe").load((clone / "dvc.lock").read_text(encoding="utf-8"))


def left_over(clone: Path) -> list[str]:
    """What a run that has ended should not leave: half of a file, or something to go on from."""
    parts = [path for folder in ("models", "data", "metrics", "log") for path in (clone / folder).rglob("*.part")]
    temporary = list(clone.rglob("*.tmp"))
    checkpoints = (clone / "models/checkpoints").glob("*")
    return [str(path.relative_to(clone)) for path in [*parts, *temporary, *checkpoints]]


def _files(cache: Path) -> set[Path]:
    return {path.relative_to(cache) for path in cache.rglob("*") if path.is_file()}
