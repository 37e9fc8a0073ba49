"""How much memory training takes beside the weights, told before it starts, and what to do if there is too little."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import torch

from howto.core.errors import UserError, is_out_of_memory
from howto.modeling.collate import Example
from howto.training.cgroup import free_in_container
from howto.training.config import ProfileTrain
from howto.training.fsdp import own_part
from howto.training.loss import CHUNK

if TYPE_CHECKING:
    from howto.training.forward import Engine

MARGIN = 1.5  # for what comes and goes on the way, and for memory that is lost between blocks: a third on a CPU
OF_CHUNK = 3  # logits, their probabilities, and a copy on the way


def check_memory(
    engine: Engine, examples: list[Example], profile: ProfileTrain, *, packing: bool, beside: int = 0, here: int = 1
) -> int:
    """The bytes that this process will need in training beside what is loaded by now.

    `beside` are such as its caller knows of; `here`, how many processes share the memory of this host's CPU.

    Raises:
        UserError: the device has less; the message says how much, and what would fit.
    """
    kept, share = Kept(engine, examples), _share(profile)
    longest = sorted((len(example) for example in examples), reverse=True)

    def needed(size: int, *, again: bool) -> float:
        size = min(size, share)
        tokens = sum(longest[:size]) if packing else longest[0] * min(size, len(longest))
        return MARGIN * (tokens * kept.bytes_per_token(again=again) + kept.fixed + beside)

    need = round(needed(profile.micro_batch_size, again=profile.gradient_checkpointing))
    have = available_bytes(engine.device)
    if engine.device.type == "cpu":
        have //= here
    if need <= have:
        return need
    fits = [
        (size, again)
        for again in ({profile.gradient_checkpointing, True})
        for size in range(profile.micro_batch_size, 0, -1)
        if profile.batch_size % size == 0 and needed(size, again=again) <= have
    ]
    best = max(fits, key=lambda fit: (fit[0], not fit[1]), default=None)
    if best is None:
        what = "not even one row at a time fits; take a smaller model, or a lower train.max_length"
    else:
        new = best[1] and not profile.gradient_checkpointing
        what = f"set micro_batch_size: {best[0]}" + (" and gradient_checkpointing: true" if new else "")
        what += " under profiles.*.train in params.yaml"
    raise UserError(
        f"train: about {_gib(need)} of memory are needed and {_gib(have)} are free on {engine.device}; {what}"
    )


class Kept:
    """What is kept between the way forth and the way back, measured on a row of middling length."""

    def __init__(self, engine: Engine, examples: list[Example]) -> None:
        row = sorted(examples, key=len)[len(examples) // 2]
        kept: dict[int, torch.UntypedStorage] = {}
        weights = {own_part(weight).untyped_storage().data_ptr() for weight in engine.model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage
            return tensor

        engine.keep_activations(True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = [engine.loss(batch, seed=0) for batch in engine.batches([row])]
        # Only now: weights that were put together for their layer alone are empty again.
        size = sum(storage.nbytes() for storage in kept.values())
        del losses
        engine.keep_activations(not engine.checkpointing)
        config = engine.base.config
        layers = int(config.num_hidden_layers)
        self._per_token: float = size / len(row)
        self._again = self._per_token / layers + layers * int(config.hidden_size) * engine.base.dtype.itemsize
        # On the way back gradients of a layer's widest activations stand beside what is kept.
        wide = 4 * int(getattr(config, "intermediate_size", 4 * config.hidden_size)) * engine.base.dtype.itemsize
        self._per_token += wide
        self._again += wide
        trained = sum(weight.numel() * weight.itemsize for weight in engine.model.parameters() if weight.requires_grad)
        # Gradient, two moments and the kept adapter; a chunk of logits.
        self.fixed: float = 4 * trained + OF_CHUNK * CHUNK * 4

    def bytes_per_token(self, *, again: bool) -> float:
        """`again`: with layers that are computed again on the way back."""
        return self._again if again else self._per_token


def available_bytes(device: torch.device) -> int:
    """The memory that this process may still take."""
    if device.type == "cuda":
        in_driver, _ = torch.cuda.mem_get_info(device)
        return int(in_driver + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free = [int(psutil.virtual_memory().available), *free_in_container()]
    space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if space != resource.RLIM_INFINITY:
        free.append(space - int(psutil.Process().memory_info().vms))
    return min(free)


def peak_bytes(device: torch.device) -> int:
    """The most memory that was held so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def says_out_of_memory(profile: ProfileTrain) -> Iterator[None]:
    """Turn the many ways in which memory runs out into one line.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = min(profile.micro_batch_size, _share(profile))
        what = f"set micro_batch_size: {size // 2}" if size > 1 else "set gradient_checkpointing: true"
        if size == 1 and profile.gradient_checkpointing:
            what = "lower train.max_length"
        raise UserError(f"train: out of memory; {what} under profiles.*.train in params.yaml, or free memory") from None


def _share(profile: ProfileTrain) -> int:
    """Rows of a step that one of the processes is dealt at most."""
    return -(-profile.batch_size // profile.processes)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
