"""A frozen base that no process holds as a whole: each keeps a part of every weight (FSDP2, Zhao et al. 2023,
arXiv:2304.11277), and a layer's weights are put together for as long as the layer is computed.

The adapter is on every process, as without: its gradients are summed as before, and since a weight that was put
together is, bit for bit, the one that was taken apart, the adapter's bytes do not change either.
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

    from howto.modeling.distributed.process_group import Group

AT_ONCE = 2  # layers that are whole at a time: the one that is computed, and the one that comes next


def shard_base(model: PeftModel, group: Group) -> None:
    """Leave to each process of the group a part of the base's weights, and all of the adapter, on its device.

    The output's weight, and with it the embeddings where the two are one, stays whole: the loss reads it outside of
    any layer. `model` is on the CPU, and goes to the device a layer at a time.

    Raises:
        UserError: which modules are the layers of this model is not known.
    """
    base = model.get_base_model()
    decoder, head = base.get_decoder(), base.get_output_embeddings()
    kinds = set(base._no_split_modules or ())
    layers = [module for module in decoder.modules() if type(module).__name__ in kinds]
    if not layers:
        raise UserError(
            f"params.yaml: profiles.*.train.fsdp: which are the layers of a {type(base).__name__} is not known; "
            "set it to false"
        )
    whole = {weight for weight in model.parameters() if weight.requires_grad} | set(head.parameters())
    mesh = init_device_mesh(group.device.type, (group.size,))
    for module in [*layers, decoder]:  # what is in no layer is taken apart last
        fully_shard(module, mesh=mesh, ignored_params=whole, reshard_after_forward=True)
    with torch.no_grad():
        for weight in model.parameters():
            if not isinstance(weight, DTensor):
                weight.data = weight.data.to(group.device)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(group.device)


def gathered_bytes(model: torch.nn.Module) -> int:
    """The most that weights which are whole for a moment take, beside the parts that are always there."""
    sizes: dict[str, int] = {}
    units = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    for name, weight in model.named_parameters():
        if isinstance(weight, DTensor):
            unit = max((unit for unit in units if name.startswith(f"{unit}.")), key=len)  # the innermost
            sizes[unit] = sizes.get(unit, 0) + weight.numel() * weight.itemsize
    return sum(sorted(sizes.values())[-AT_ONCE:])


def own_part(weight: torch.Tensor) -> torch.Tensor:
    """What this process has of a weight."""
    return weight.to_local() if isinstance(weight, DTensor) else weight
