"""Predict the memory that training needs, before it starts, and name the setting that fits if there is too little."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

import psutil
import torch

from howto.core.errors import UserError
from howto.modeling.collate import Example
from howto.training.cgroup import free_in_container
from howto.training.config import ProfileTrain
from howto.training.fsdp import gathered_bytes, local_shard
from howto.training.loss import CHUNK_LOGITS

if TYPE_CHECKING:
    from howto.training.forward import Engine

MARGIN = 1.5  # for short-lived tensors, and for fragmentation: a third on a CPU
LOGIT_COPIES = 3  # of a chunk: logits, probabilities, and a temporary copy


def check_memory(engine: Engine, examples: list[Example], profile: ProfileTrain, processes_on_host: int = 1) -> int:
    """Return the bytes that this process is predicted to need beside what is loaded now.

    `processes_on_host` share the memory of a CPU. Raise UserError if the device has less memory; the message says how
    much, and which setting fits.
    """
    saved = _saved_bytes_per_token(engine, sorted(examples, key=len)[len(examples) // 2])
    config, itemsize = engine.base.config.get_text_config(decoder=True), engine.base.dtype.itemsize
    layers, hidden = int(config.num_hidden_layers), int(config.hidden_size)
    # Checkpointing saves each layer's input, and the activations of one layer at a time.
    checkpointed = saved / layers + layers * hidden * itemsize
    widest = 4 * int(getattr(config, "intermediate_size", 4 * hidden)) * itemsize  # gradients in the backward pass
    adapter = sum(weight.numel() * weight.itemsize for weight in engine.model.parameters() if weight.requires_grad)
    # Gradient, two moments and the kept copy of the adapter; a chunk of logits.
    fixed = 4 * adapter + LOGIT_COPIES * CHUNK_LOGITS * 4 + gathered_bytes(engine.model)
    lengths = sorted(map(len, examples), reverse=True)

    def needed(size: int, checkpointing: bool) -> int:
        size = min(size, -(-profile.batch_size // profile.processes))  # this process's share of a step
        tokens = sum(lengths[:size]) if engine.packing else lengths[0] * min(size, len(lengths))
        per_token = (checkpointed if checkpointing else saved) + widest
        return int(MARGIN * (tokens * per_token + fixed))

    need, have = needed(profile.micro_batch_size, profile.gradient_checkpointing), available_bytes(engine.device)
    if engine.device.type == "cpu":
        have //= processes_on_host
    if need <= have:
        return need
    sizes = [size for size in range(profile.micro_batch_size, 0, -1) if profile.batch_size % size == 0]
    settings = [(size, again) for size in sizes for again in sorted({profile.gradient_checkpointing, True})]
    fitting = next((setting for setting in settings if needed(*setting) <= have), None)
    what = "Not even one row fits: use a smaller model, or lower train.max_length."
    if fitting:
        more = " and gradient_checkpointing: true" if fitting[1] and not profile.gradient_checkpointing else ""
        what = f"Set micro_batch_size: {fitting[0]}{more} under profiles.*.train in params.yaml."
    memory = f"expected {need / 2**30:.1f} GiB of free memory on {engine.device}, got {have / 2**30:.1f} GiB"
    raise UserError(f"train: {memory}. {what}")


def _saved_bytes_per_token(engine: Engine, row: Example) -> float:
    """Measure what a forward pass of a row, without checkpointing, saves for the backward pass."""
    saved: dict[int, torch.UntypedStorage] = {}
    weights = {local_shard(weight).untyped_storage().data_ptr() for weight in engine.model.parameters()}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    engine.set_checkpointing(False)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        losses = [engine.loss(batch, seed=0) for batch in engine.batches([row])]
    size = sum(storage.nbytes() for storage in saved.values())  # now that gathered weights are freed
    del losses
    engine.set_checkpointing(engine.checkpointing)
    return size / len(row)


def available_bytes(device: torch.device) -> int:
    """Return the memory that this process can still allocate."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free_bytes = [int(psutil.virtual_memory().available), *free_in_container()]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free_bytes.append(limit - int(psutil.Process().memory_info().vms))
    return min(free_bytes)


def peak_bytes(device: torch.device) -> int:
    """Return the peak memory so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
