"""Shard a frozen base model over processes: each holds a part of every weight (FSDP2, Zhao et al. 2023,
arXiv:2304.11277), and a layer's weights are gathered while the layer is computed.

The adapter is on every process. Gathered weights are bit for bit the original ones, so the adapter's bytes are those
of training without FSDP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from howto.core.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel

    from howto.modeling.distributed.process_group import ProcessGroup

GATHERED_LAYERS = 2  # at a time: the one that is computed, and the next


def shard_base(model: PeftModel, group: ProcessGroup) -> None:
    """Leave a shard of the base's weights, and the whole adapter, on each process's device.

    The weight of the output head is not sharded (nor the embeddings where they share it), because the loss reads it
    outside of any layer. `model` is on the CPU, and moves to the device a layer at a time. Raise UserError for a model
    whose layers are not known.
    """
    base = model.get_base_model()
    decoder, head = base.get_decoder(), base.get_output_embeddings()
    kinds = set(base._no_split_modules or ())
    layers = [module for module in decoder.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(
            f"params.yaml: profiles.*.train.fsdp: {type(base).__name__} does not support it. Set it to false."
        )
    unsharded = {weight for weight in model.parameters() if weight.requires_grad} | set(head.parameters())
    mesh = init_device_mesh(group.device.type, (group.size,))
    for module in [*layers, decoder]:  # the decoder last: for weights outside of layers
        fully_shard(module, mesh=mesh, ignored_params=unsharded, reshard_after_forward=True)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if not isinstance(tensor, DTensor):
                tensor.data = tensor.data.to(group.device)


def gathered_bytes(model: torch.nn.Module) -> int:
    """Return the most bytes that gathered weights take at a time, beside the shards."""
    sizes: dict[str, int] = {}
    units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    for name, weight in model.named_parameters():
        if isinstance(weight, DTensor):
            unit = max((unit for unit in units if name.startswith(f"{unit}.")), key=len)  # the innermost
            sizes[unit] = sizes.get(unit, 0) + weight.numel() * weight.itemsize
    return sum(sorted(sizes.values())[-GATHERED_LAYERS:])


def local_shard(weight: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a weight."""
    return weight.to_local() if isinstance(weight, DTensor) else weight
