"""How torch is set up, so that the same inputs give the same bytes whatever the machine is doing.

Import this module, and call `set_up_torch`, before torch is imported anywhere else.
"""

from __future__ import annotations

import os
import platform
import warnings
from typing import TYPE_CHECKING

from howto.core.errors import UserError
from howto.core.instruction_set import set_torch_environment, use_openblas
from howto.modeling.config import Machine, ProfileMachine

if TYPE_CHECKING:
    import torch


def set_up_torch(machine: Machine, profile: ProfileMachine) -> torch.device:
    """Fix the number of threads, choose deterministic kernels, and give the device of the active profile.

    Raises:
        UserError: the profile wants a GPU and there is none; or its bytes are to be portable, and this CPU lacks AVX2.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(machine.threads)
    os.environ["MKL_DYNAMIC"] = os.environ["OMP_DYNAMIC"] = "FALSE"  # as many threads on a machine that is busy
    # Threads that wait for others spin for a while, and then sleep. By default they spin for so long that, once another
    # program wants a core too, they keep it from those whom they wait for: a step then takes up to fifty times as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    portable = machine.instruction_set == "portable"
    if portable:
        set_torch_environment()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"  # what a stage computes with lies in models/; nothing is looked up
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    # A GPU's memory is not cut into pieces by batches of many lengths.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    # What the libraries say to one another of names to come is not for the reader of a run.
    warnings.filterwarnings("ignore", category=FutureWarning)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(machine.threads)
    torch.use_deterministic_algorithms(machine.deterministic)
    # What it would also do, filling memory that nothing has written yet, costs time and guards nothing here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if profile.device == "cpu" or (profile.device == "auto" and not torch.cuda.is_available()):
        if portable:
            use_openblas(machine.threads)
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "params.yaml: profiles.*.machine.device is cuda, and torch sees no GPU; set it to auto, or run on one"
        )
    return torch.device("cuda")


def versions(device: torch.device) -> dict[str, str]:
    """What else, beside its inputs, decides about every bit of a run."""
    import peft
    import torch
    import transformers

    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "device": f"{device.type} {chip}",
    }
