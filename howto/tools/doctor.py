"""Check whether this machine can run the active profile. It changes nothing and downloads nothing.

howto doctor        one line per check; exit status 1 if there is a problem
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from howto.core.config import Params
from howto.core.errors import UserError, one_line
from howto.core.instruction_set import cpu_name, has_avx2
from howto.core.workers import usable_cores
from howto.general.config import General
from howto.general.inputs import read_questions, read_texts
from howto.modeling.config import Machine, ProfileMachine
from howto.params import read_params
from howto.sources.config import Data, Model, Source
from howto.sources.files import is_local, row_files
from howto.sources.installed_package import PREFIX, package_file
from howto.sources.model_files import model_files
from howto.training.cgroup import CGROUP
from howto.training.config import ProfileTrain

OK, WARNING, PROBLEM = "ok", "warning", "problem"
REQUIREMENTS = Path("requirements.lock")
DISK, MEMORY = 2e9, 6e9  # bytes that the profile smollm2 needs; its outputs are counted twice, for DVC's cache


class Finding(NamedTuple):
    """The result of one check, and what to do about it."""

    level: str
    name: str
    found: str
    advice: str = ""


def doctor() -> None:
    """Print one line per check. Exit with 1 if there is a problem."""
    findings = examine()
    for level, name, found, advice in findings:
        print(f"{level:8} {name}: {found.rstrip('.')}. {advice}".rstrip())
    levels = [finding.level for finding in findings]
    print(f"{levels.count(PROBLEM)} problem(s), {levels.count(WARNING)} warning(s)")
    sys.exit(int(PROBLEM in levels))


def examine() -> list[Finding]:
    """Return the findings for the working directory. Without a valid params.yaml, the profile is not checked.

    Raise UserError if this is not the project's root.
    """
    findings = [_packages(), _python(), _disk()]
    try:
        params = read_params()
    except UserError as error:
        return [*findings, Finding(PROBLEM, "params.yaml", str(error))]
    findings.append(Finding(OK, "params.yaml", f"valid, and the active profile is {params.profile}"))
    for name, check in (("device", _device), ("memory", _memory), ("threads", _threads)):
        findings.append(_guarded(name, check, params))
    model, data = params.section(Model), params.section(Data)
    findings.append(_guarded("model.source", _source, "model.source", "model", model))
    rows = {f"data.sources.{name}.source" if name else "data.source": one for name, one in data.by_name().items()}
    if test := data.test():
        rows["data.test_source"] = test
    findings += [_guarded(key, _source, key, "dataset", one) for key, one in rows.items()]
    return [*findings, *_general(params)]


def packages_unlike_lock() -> tuple[list[str], list[str]]:
    """Return the packages of requirements.lock that are not installed, and those in another version.

    Raise UserError if there is no requirements.lock.
    """
    try:
        text = REQUIREMENTS.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{REQUIREMENTS}: no such file. Run the command in the project's root.") from None
    missing, different = [], []
    for name, locked in re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE):
        try:
            installed = version(name)
        except PackageNotFoundError:
            missing.append(name)
            continue
        if installed.partition("+")[0] != locked.partition("+")[0]:  # torch 2.13.0+cpu is 2.13.0
            different.append(f"{name} {installed} (lock: {locked})")
    return missing, different


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    needed = re.search(r'requires-python = ">=(\d+)\.(\d+)"', Path("pyproject.toml").read_text(encoding="utf-8"))
    if needed and sys.version_info[:2] < (int(needed[1]), int(needed[2])):
        advice = f"Run `make run PYTHON=python{needed[1]}.{needed[2]}`."
        return Finding(PROBLEM, "Python", f"expected {needed[1]}.{needed[2]} or newer, got {found}", advice)
    return Finding(OK, "Python", f"{found} ({sys.executable})")


def _packages() -> Finding:
    missing, different = packages_unlike_lock()
    advice = f"Run `{sys.executable} -m pip install -r {REQUIREMENTS}`."
    if missing:
        return Finding(PROBLEM, "packages", f"not installed: {', '.join(missing)}", advice)
    if different:
        return Finding(WARNING, "packages", f"other versions may give other bytes: {', '.join(different)}", advice)
    return Finding(OK, "packages", f"as in {REQUIREMENTS}")


def _disk() -> Finding:
    free = shutil.disk_usage(".").free
    if not os.access(".", os.W_OK):
        return Finding(PROBLEM, "disk", "no permission to write here", "Change the owner or mode of this folder.")
    if free < DISK:
        return Finding(WARNING, "disk", f"{_gib(free)} free, the smallest profile needs {_gib(DISK)}", "Free space.")
    return Finding(OK, "disk", f"{_gib(free)} free")


def _guarded(name: str, check: Callable[..., Finding], *arguments: object) -> Finding:
    """Return what a check finds, or a problem if a package that it imports is missing or broken."""
    try:
        return check(*arguments)
    except ImportError as error:
        advice = f"Run `{sys.executable} -m pip install --force-reinstall -r {REQUIREMENTS}`."
        return Finding(PROBLEM, name, f"a package cannot be imported ({one_line(error)})", advice)


def _device(params: Params) -> Finding:
    """Find the device of the profile; on a CPU, check for the instructions that portable results need."""
    import torch

    if _uses_gpu(params):
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return Finding(OK, "device", f"{', '.join(names)}, torch {torch.__version__}")
    name, device = cpu_name(), params.section(ProfileMachine).device
    if device == "cuda":
        advice = "Check `nvidia-smi` and CUDA_VISIBLE_DEVICES, or set machine.device: auto."
        if torch.version.cuda is None:
            advice = "Install a CUDA build of torch, or set machine.device: auto."
        return Finding(PROBLEM, "device", "the profile needs cuda, and torch sees no GPU", advice)
    if params.section(Machine).instruction_set == "portable" and not has_avx2():
        found = f"{name} lacks AVX2 or FMA, which machine.instruction_set: portable needs"
        return Finding(PROBLEM, "device", found, "Set it to native.")
    if device == "auto":
        return Finding(WARNING, "device", f"torch sees no GPU, so {name} is used", "Expect hours instead of minutes.")
    return Finding(OK, "device", f"{name}, torch {torch.__version__}")


def _uses_gpu(params: Params) -> bool:
    import torch

    return params.section(ProfileMachine).device != "cpu" and torch.cuda.is_available()


def _memory(params: Params) -> Finding:
    """Check free memory roughly. Training measures what it needs before it starts."""
    import torch

    from howto.training.memory_check import available_bytes

    on_gpu = _uses_gpu(params)
    free = available_bytes(torch.device("cuda" if on_gpu else "cpu"))
    if free < MEMORY:
        found = f"{_gib(free)} free, the smallest profile needs {_gib(MEMORY)}"
        return Finding(WARNING, "memory", found, "End other programs, or use a larger machine.")
    return Finding(OK, "memory", f"{_gib(free)} free{' on the GPU' if on_gpu else ''}")


def _threads(params: Params) -> Finding:
    """Compare machine.threads of all training processes with the cores that this process may use."""
    cores = float(usable_cores())
    try:
        quota, period = (CGROUP / "cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no container, or "max"
        pass
    threads, processes = params.section(Machine).threads, params.section(ProfileTrain).processes
    if threads * processes > cores and not _uses_gpu(params):
        found = f"{cores:g} cores for {processes} process(es) of {threads} threads each"
        return Finding(WARNING, "threads", found, "It takes longer. A lower machine.threads gives other bytes.")
    return Finding(OK, "threads", f"machine.threads is {threads}, {cores:g} cores")


def _general(params: Params) -> Iterator[Finding]:
    """Check that the general text and the questions can be read."""
    config = params.section(General)
    for key, name, read in (("general.text", config.text, read_texts), ("general.chat", config.chat, read_questions)):
        try:
            found = f"{name} has {len(list(read(Path(name))))} entries" if name else "left out"
        except UserError as error:
            yield Finding(PROBLEM, key, str(error).removeprefix(f"params.yaml: {key}: "))
            continue
        yield Finding(OK, key, found)


def _source(key: str, kind: str, section: Model | Source) -> Finding:
    """Check that a model or a dataset can be read: from a package, a local path, or the hub (offline: its cache)."""
    name, file = section.source, section.file
    try:
        if name.startswith(PREFIX):
            return Finding(OK, key, f"{package_file(name)[1]} is installed")
        if not is_local(name, section.revision, key):
            from howto.sources.hub import open_repository

            repository = open_repository(name, kind, section.revision)
            names = repository.names
            if kind == "model":
                names = [file] if file else model_files(names, name)
            elif file or not names:  # else the data set itself may say which of its files have rows
                names = row_files(names, file, name, key)
            repository.check_access(names[-1])
            return Finding(OK, key, f"the hub has {name}")
    except UserError as error:
        return Finding(PROBLEM, key, str(error).removeprefix(f"params.yaml: {key}: "))
    if not Path(name).expanduser().exists():
        return Finding(PROBLEM, key, f"{name}: no such file or folder", "Fix it in params.yaml.")
    return Finding(OK, key, f"{name} exists")


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
