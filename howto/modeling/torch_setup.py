"""Set up torch so that the same inputs give the same bytes, however busy the machine is.

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
    """Set the number of threads, choose deterministic kernels, and return the device of the active profile.

    Raise UserError if the profile needs a GPU and there is none, or if this CPU does not support `portable`.
    """
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(machine.threads)
    os.environ["MKL_DYNAMIC"] = os.environ["OMP_DYNAMIC"] = "FALSE"  # as many threads on a busy machine
    # Waiting threads spin before they sleep. By default they spin so long that, if another program needs a core, they
    # hold up the very threads that they wait for: a step then takes up to 50 times as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    portable = machine.instruction_set == "portable"
    if portable:
        set_torch_environment()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_OFFLINE"] = "1"  # all files of a stage are in models/
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # batches of many lengths fragment memory
    warnings.filterwarnings("ignore", category=FutureWarning)  # about the libraries' own use of each other
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(machine.threads)
    torch.use_deterministic_algorithms(machine.deterministic)
    # Deterministic mode would also fill new memory with NaN, which costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if profile.device != "cpu" and torch.cuda.is_available():
        return torch.device("cuda")
    if profile.device == "cuda":
        raise UserError("params.yaml: profiles.*.machine.device: expected a GPU, got none. Set it to auto, or use one.")
    if portable:
        use_openblas(machine.threads)
    return torch.device("cpu")


def versions(device: torch.device) -> dict[str, str]:
    """Return the versions and the chip that results also depend on."""
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
