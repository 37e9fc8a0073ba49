"""What a decode step would cost on a GPU, counted on tensors without data, so that no GPU is needed.

`KernelCount` counts the kernels that operations launch, and the bytes that these read and write. Under `PretendGpu`,
code that asks for the device of such tensors takes the path of a GPU.

The count is a model: a matrix product is one kernel, and every tensor is read from memory, even if a cache holds it.
For commit bc4923b it gives the 1,034 kernels that an H100's profiler counts (benchmarks/results/gpu_check_h100.json).
"""

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
ALLOCATE = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "_unsafe_view"}
GATHER = {"index", "index_select", "gather", "embedding"}  # of the first tensor they read as much as they write
OVERWRITE = {"copy_", "fill_", "zero_"}
KERNELS = {"constant_pad_nd": 2}  # of operations that launch more than one
SORTED_WRITE = 23  # kernels of an index_put_ under deterministic algorithms, which sort the places first


class KernelCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations launch and move while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kernels, self._bytes = Counter[str](), Counter[str]()  # by operation

    @property
    def kernels(self) -> int:
        """How many kernels are launched."""
        return self._kernels.total()

    @property
    def bytes(self) -> int:
        """How many bytes are read and written."""
        return self._bytes.total()

    def table(self) -> str:
        """Return a line for each operation, the one that moves most first."""
        found = self._bytes.most_common()
        return "\n".join(f"{name:<45}{self._kernels[name]:>6} kernels {size / 1e9:8.3f} GB" for name, size in found)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Without autograd, composite operations arrive here undivided.
        if torch._C._dispatch_has_kernel_for_dispatch_key(str(func._name), "CompositeImplicitAutograd"):
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        result = func(*args, **kwargs)
        self._add(func, args, kwargs, result)
        return result

    def _add(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name, schema = func._schema.name.removeprefix("aten::"), func._schema
        if name in ALLOCATE:
            return
        values = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
        written, read = [], []
        for argument in schema.arguments:
            tensors = [leaf for leaf in tree_leaves(values.get(argument.name)) if isinstance(leaf, Tensor)]
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            written += tensors if is_written else []
            read += [] if is_written and (argument.is_out or name in OVERWRITE) else tensors
        if not written and not any(one.alias_info for one in schema.returns):  # no view
            written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not written:
            return
        self._kernels[name] += KERNELS.get(name, 1)
        self._bytes[name] += sum(map(size_in_bytes, (*read, *written)))
        if name in GATHER:
            self._bytes[name] += size_in_bytes(written[0]) - size_in_bytes(read[0])
        elif name == "index_put_":  # reads the values and the places, and writes a part of the tensor
            part = aten.index.Tensor(values["self"], values["indices"])
            self._bytes[name] += size_in_bytes(part) - 2 * size_in_bytes(values["self"])
            self._kernels[name] += SORTED_WRITE - 1 if torch.are_deterministic_algorithms_enabled() else 0


def size_in_bytes(tensor: Tensor) -> int:
    """Return the bytes of the elements of a tensor; expanded dimensions count once."""
    shape = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in shape if stride or not size) * tensor.itemsize


class PretendGpu(TorchFunctionMode):
    """Lets tensors of the meta device say that they are on a GPU, and creates them where code asks for a GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.device.__get__:
            device = func(*args)
            return torch.device("cuda") if device.type == "meta" else device
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return args[0].is_meta
        args, kwargs = tuple(map(_on_meta, args)), {name: _on_meta(value) for name, value in kwargs.items()}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return attention_of_gpu(*args, **kwargs)
        if func is torch.nn.functional.rms_norm:  # one kernel, which moves what that of LayerNorm moves
            return aten.native_layer_norm(*args, kwargs["weight"], None, kwargs["eps"])[0]
        return func(*args, **kwargs)


def _on_meta(value: Any) -> Any:
    is_gpu = isinstance(value, torch.device | str) and str(value).partition(":")[0] == "cuda"
    return torch.device("meta") if is_gpu else value


def attention_of_gpu(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, *, scale: float) -> Tensor:
    """Compute masked attention by the kernel that torch takes on an H100 (section C of gpu_check_h100.json).

    As torch does, convert a mask of bools for each call, and copy a mask whose rows do not start at multiples of 8
    elements.
    """
    if attn_mask.dtype is torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, torch.full((), -torch.inf, dtype=query.dtype, device=query.device))
    if any(stride % 8 for stride in attn_mask.stride()[:-1]):
        attn_mask = torch.nn.functional.pad(attn_mask, (0, -attn_mask.shape[-1] % 8))[..., : attn_mask.shape[-1]]
    attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, False, scale=scale)[0]  # type: ignore[no-any-return]
