"""Whether the machine has what the active profile needs: a device, memory, disk, cores, and the kind of CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

from howto.core.instruction_set import cpu, has_avx2
from howto.tools.finding import OK, PROBLEM, WARNING, Asked, Finding, gib, output_of
from howto.training.cgroup import CGROUP, free_in_container

ENVIRONMENT = 7e9  # bytes that .venv takes with torch's CUDA libraries; 2 GB without
DISK, MEMORY = 2e9, 6e9  # bytes that the profile smollm2 takes, the first with DVC's copies
DRIVER = Path("/proc/driver/nvidia/version")
# Asked of a process of its own: a torch that is broken, or built for another CPU, ends that one alone.
TORCH = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
gpus = [torch.cuda.get_device_properties(n) for n in range(count)]
has = torch.distributed.is_available()
print(json.dumps({"torch": str(torch.__version__), "cuda": torch.version.cuda,
    "gpus": [[gpu.name, gpu.total_memory, gpu.major] for gpu in gpus],
    "gloo": has and torch.distributed.is_gloo_available(), "nccl": has and torch.distributed.is_nccl_available()}))
"""


def check_device(asked: Asked) -> list[Finding]:
    """The device that the profile wants, and torch's view of it; how many processes, and what they talk by."""
    torch, status, error = _torch()
    if torch is None:
        if "No module named 'torch'" in error:
            return [Finding(WARNING, "torch", "not installed", "`make run` installs it")]
        why = error or f"it ended with {status}"
        to_do = f"{sys.executable} -m pip install --force-reinstall torch, in the version of requirements.lock"
        return [Finding(PROBLEM, "torch", f"cannot be imported: {why[:200]}", to_do)]
    return [*_device(asked, torch), *_processes(asked, torch)]


def _torch() -> tuple[dict[str, Any] | None, int, str]:
    """What torch says of itself and of its GPUs; if it does not, the status of the process, and its error."""
    status, said, error = output_of(sys.executable, "-c", TORCH)
    return (None if status else json.loads(said.splitlines()[-1])), status, error


def _device(asked: Asked, torch: dict[str, Any]) -> list[Finding]:
    wanted, build = asked.value("profiles.*.machine.device"), f"torch {torch['torch']}"
    if torch["gpus"]:
        names = ", ".join(f"{name} ({gib(memory)})" for name, memory, _ in torch["gpus"])
        used = "; the profile computes on the CPU all the same" if wanted == "cpu" else ""
        found = [Finding(OK, "device", f"{names}, {build} for CUDA {torch['cuda']}{used}")]
        old = min(major for *_, major in torch["gpus"]) < 8
        if wanted != "cpu" and old and asked.value("profiles.*.machine.precision") == "bfloat16":
            what = "this GPU is older than Ampere and has no bfloat16 of its own"
            found.append(Finding(WARNING, "precision", what, "take another GPU, or set machine.precision: float32"))
        return found
    if wanted in (None, "cpu"):
        return [Finding(OK, "device", f"the CPU, {build}")]
    if torch["cuda"] is None:
        why, to_do = f"{build} is built without CUDA", "install the CUDA build of torch (https://pytorch.org)"
    elif not DRIVER.exists() and shutil.which("nvidia-smi") is None:
        why, to_do = "no NVIDIA driver is on this machine", "install the driver, or take a machine with a GPU"
    else:
        why, to_do = "the driver is there, and torch sees no GPU", "look at nvidia-smi and at CUDA_VISIBLE_DEVICES"
    if wanted == "cuda":
        return [Finding(PROBLEM, "device", f"cuda is wanted: {why}", f"{to_do}; or set machine.device: auto")]
    return [
        Finding(WARNING, "device", f"no GPU ({why}): all is computed on the CPU", "docs/training.md has the speeds")
    ]


def _processes(asked: Asked, torch: dict[str, Any]) -> list[Finding]:
    count = asked.value("profiles.*.train.processes")
    if not isinstance(count, int) or count == 1:
        return []
    from howto.core.errors import UserError

    try:
        here = _of_this_host(asked)
    except UserError as stop:
        return [Finding(PROBLEM, "processes", str(stop), "mend params.yaml or the environment")]
    on_gpus = asked.value("profiles.*.machine.device") != "cpu" and bool(torch["gpus"])
    there = "" if here == count else f", {here} of them on this host"
    if on_gpus and len(torch["gpus"]) < here:
        what = f"train.processes is {count}{there}, and there are {len(torch['gpus'])} GPUs"
        return [Finding(PROBLEM, "processes", what, "lower train.processes; each wants a GPU of its own")]
    backend = "nccl" if on_gpus else "gloo"
    if not torch[backend]:
        return [Finding(PROBLEM, "processes", f"this torch has no {backend}", "install another build of torch")]
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        return [Finding(PROBLEM, "processes", f"no port of loopback is free ({error.strerror})", "end other programs")]
    way = "over loopback" if not there else "over the network, which was not tried"
    return [Finding(OK, "processes", f"{count}{there}, by {backend} {way}")]


def _of_this_host(asked: Asked) -> int:
    """How many of train.processes run on this host; 1 where that is not known.

    Raises:
        UserError: they cannot be dealt to the hosts that the environment names.
    """
    processes = asked.value("profiles.*.train.processes")
    if not isinstance(processes, int):
        return 1
    from howto.modeling.distributed.launch import processes_per_host

    return processes_per_host(processes, "train.processes")


def _gpus(asked: Asked) -> list[tuple[str, float]]:
    """Name and memory of the GPUs that the profile would use, as torch sees them."""
    if asked.params is None or asked.value("profiles.*.machine.device") == "cpu":
        return []
    torch, *_ = _torch()
    return [(name, memory) for name, memory, _ in torch["gpus"]] if torch else []


def check_memory_and_disk(asked: Asked) -> list[Finding]:
    """Free memory and disk. What training needs is measured, and checked against what is free, when it starts."""
    free = shutil.disk_usage(".").free
    if not Path(".venv/.installed").exists() and sys.prefix == sys.base_prefix and free < ENVIRONMENT:
        what = f"{gib(free)} free, and .venv alone takes up to {gib(ENVIRONMENT)} with torch's CUDA libraries"
        return [Finding(PROBLEM, "disk", what, "free space, or clone onto another disk")]
    return [
        _enough("disk", DISK, free, "free space, or clone onto another disk"),
        _enough("memory", MEMORY, available_memory(), "end other programs, or use a larger machine"),
    ]


def _enough(what: str, least: float, free: float, to_do: str) -> Finding:
    if free < least:
        return Finding(WARNING, what, f"{gib(free)} free; the smallest profile needs {gib(least)}", to_do)
    return Finding(OK, what, f"{gib(free)} free")


def available_memory() -> float:
    """Bytes that may still be taken: of the machine, and within a container's limit."""
    free = []
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        free.append(float(re.search(r"MemAvailable:\s+(\d+) kB", text)[1]) * 1024)  # type: ignore[index]
    except (OSError, TypeError):
        import psutil

        free.append(float(psutil.virtual_memory().available))
    return min(free + [float(one) for one in free_in_container()])


def check_cores(asked: Asked) -> list[Finding]:
    """Cores beside machine.threads, and beside those of all processes of this host that train on them."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    try:
        quota, period = (CGROUP / "cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no container, or "max"
        pass
    threads = asked.value("machine.threads")
    if not isinstance(threads, int):
        return [Finding(OK, "cores", f"{cores:g}")]
    if threads > cores:
        what = f"{cores:g} for machine.threads: {threads}; the results are the same, it takes longer"
        return [
            Finding(
                WARNING, "cores", what, f"leave it for the same bytes, or set machine.threads: {max(1, int(cores))}"
            )
        ]
    processes = _on_cpu(asked)
    if threads * processes > cores:
        what = f"{cores:g} for {processes} processes of machine.threads: {threads} each, which wait for each other"
        fits = int(cores / processes)
        to_do = f"set machine.threads: {fits}" if fits else "lower train.processes, or take more hosts"
        return [Finding(WARNING, "cores", what, f"{to_do}; either gives other bytes")]
    more = "; more threads would be faster, and give other bytes" if cores > threads else ""
    return [Finding(OK, "cores", f"{cores:g}, of which machine.threads takes {threads}{more}")]


def _on_cpu(asked: Asked) -> int:
    """How many processes of this host train on its CPU; 1 where that is not known, or where GPUs train."""
    if asked.params is None:
        return 1
    from howto.core.errors import UserError

    try:
        here = _of_this_host(asked)
    except UserError:  # check_device says so
        return 1
    return 1 if here > 1 and _gpus(asked) else here


def check_cpu(asked: Asked) -> list[Finding]:
    """Whether this CPU can compute the bytes of the committed run."""
    name = cpu()[0].split(",")[0]
    if asked.value("machine.instruction_set") == "portable" and not has_avx2():
        what = f"{name} is no x86-64 CPU with AVX2 and FMA, which instruction_set: portable needs on a CPU"
        return [Finding(WARNING, "CPU", what, "set machine.instruction_set: native, and commit your own results")]
    return [Finding(OK, "CPU", name)]
