"""What a machine has that may change the bytes of a run: its CPU, its libraries, and how torch is told to compute.

python -m howto.machine_facts      prints it as JSON
"""

from __future__ import annotations

import json
import os
import platform
import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from howto.cpu import cpu
from howto.params.file import Params, read_params
from howto.params.machine import Machine, ProfileMachine
from howto.processes import usable_cores
from howto.stop import stops_cleanly

KIND = ("cpu", "instructions", "torch_capability", "device")  # machines that agree in these are to give the same bytes
SETTINGS = re.compile("(OMP|KMP|MKL|ATEN|DNNL|ONEDNN|OPENBLAS|CUBLAS|CUDA|NVIDIA)_")


def machine_facts(params: Params) -> dict[str, str]:
    """By name; those in KIND decide how it rounds, the others may."""
    name, instructions = cpu()
    profile, machine = params.section(ProfileMachine), params.section(Machine)

    import torch

    gpu = profile.device != "cpu" and torch.cuda.is_available()
    return {
        "cpu": name,
        "instructions": instructions,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "device": f"cuda {torch.version.cuda} {torch.cuda.get_device_name()}" if gpu else "cpu",
        "threads": str(machine.threads),
        "instruction_set": machine.instruction_set,
        "cores": str(usable_cores()),
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "environment": " ".join(f"{key}={value}" for key, value in sorted(os.environ.items()) if SETTINGS.match(key)),
        "python": platform.python_version(),
        **_packages(),
    }


def _packages() -> dict[str, str]:
    """The installed version of each package that pyproject.toml asks for."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {}
    for asked in project["dependencies"]:
        name = re.split(r"[^\w.-]", asked)[0]
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


@stops_cleanly
def main() -> None:
    """Print the facts."""
    print(json.dumps(machine_facts(read_params()), indent=2))


if __name__ == "__main__":
    main()
