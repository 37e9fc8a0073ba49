"""What a GPU would have to do for some work: counted on tensors without data, so that no GPU is needed.

`KernelCount` counts the kernels that operations launch and the bytes that these read and write. `pretend_gpu` lets code
that asks for the device of such tensors take the path of a GPU, and attention the kernel that a GPU's attention takes.

The count is a model: a matrix product is one kernel, and every tensor is read from memory, also where a cache holds it.
For the decode step of commit bc4923b it counts the 1,034 kernels that a H100's profiler counts (section H of
benchmarks/results/gpu_check_h100.json), and with the adapter 1,342 for 1,364.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
ALLOCATE = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided", "_unsafe_view"}
# Of the first tensor these read as much as they write.
GATHER = {"index", "index_select", "gather", "embedding"}
# These write a part of a tensor. index_add and scatter_add read that part too.
INDEXED_WRITE = {"index_put_", "_index_put_impl_", "index_copy_", "index_add_", "scatter_", "scatter_add_"}
OVERWRITE = {"copy_", "fill_", "zero_", "uniform_", "normal_", "bernoulli_", "random_"}
SEVERAL = {"constant_pad_nd": 2}  # kernels of operations that launch more than one
SORTED_WRITE = 23  # kernels of an index_put on a H100 under deterministic algorithms, which sort the places first


@dataclass
class Figures:
    """Kernels, and the bytes that they read and write."""

    kernels: int = 0
    bytes: int = 0


class KernelCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what operations launch and move while it is active: all together, and by the name of the operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.by_operation: defaultdict[str, Figures] = defaultdict(Figures)

    @property
    def kernels(self) -> int:
        """How many kernels are launched."""
        return sum(figures.kernels for figures in self.by_operation.values())

    @property
    def bytes(self) -> int:
        """How many bytes are read and written."""
        return sum(figures.bytes for figures in self.by_operation.values())

    def table(self) -> str:
        """Return a line for each operation, the one that moves most first."""
        found = sorted(self.by_operation.items(), key=lambda item: -item[1].bytes)
        return "\n".join(f"{name:<45}{of.kernels:>6} kernels {of.bytes / 1e9:8.3f} GB" for name, of in found)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Without autograd, operations that are made of others arrive here whole.
        if torch._C._dispatch_has_kernel_for_dispatch_key(str(func._name), "CompositeImplicitAutograd"):
            with self:
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        result = func(*args, **kwargs)
        self._note(func, args, kwargs, result)
        return result

    def _note(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        written, read = [], []
        for argument in func._schema.arguments:
            tensors = [leaf for leaf in tree_leaves(named.get(argument.name)) if isinstance(leaf, Tensor)]
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            written += tensors if is_written else []
            read += [] if is_written and (argument.is_out or name in OVERWRITE) else tensors
        returns = func._schema.returns
        if not written:
            if name in ALLOCATE or any(one.alias_info for one in returns):  # views
                return
            written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not written:
            return
        moved = sum(map(size_in_bytes, (*read, *written)))
        if name in GATHER:
            moved += size_in_bytes(written[0]) - size_in_bytes(read[0])
        kernels = SEVERAL.get(name, 1)
        if name in INDEXED_WRITE:
            part = _indexed_bytes(name, named)
            moved = sum(map(size_in_bytes, read[1:])) + part * (2 if "add" in name else 1)
            if "index_put" in name and torch.are_deterministic_algorithms_enabled():
                kernels = SORTED_WRITE
        figures = self.by_operation[name]
        figures.kernels += kernels
        figures.bytes += moved


def size_in_bytes(tensor: Tensor) -> int:
    """Return the bytes of the elements of a tensor; what is expanded counts once."""
    shape = zip(tensor.shape, tensor.stride(), strict=True)
    return math.prod(size for size, stride in shape if stride or not size) * tensor.itemsize


def _indexed_bytes(name: str, named: dict[str, Any]) -> int:
    """Return the bytes that a write through an index writes."""
    if "index_put" in name:
        return size_in_bytes(aten.index.Tensor(named["self"], named["indices"]))
    index = named["index"]
    if name.startswith("scatter"):
        return int(index.numel() * named["self"].itemsize)
    return size_in_bytes(named["source"])


@contextmanager
def pretend_gpu() -> Iterator[None]:
    """Let tensors of the meta device say that they are on a GPU, and be made where code asks for one."""
    with _PretendGpu():
        yield


class _PretendGpu(TorchFunctionMode):
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
        if func is torch.nn.functional.scaled_dot_product_attention and args[0].is_meta:
            return attention_of_gpu(*args, **kwargs)
        if func is torch.nn.functional.rms_norm and args[0].is_meta:
            return norm_of_gpu(*args, **kwargs)
        return func(*args, **kwargs)


def _on_meta(value: Any) -> Any:
    is_gpu = isinstance(value, torch.device | str) and str(value).partition(":")[0] == "cuda"
    return torch.device("meta") if is_gpu else value


def norm_of_gpu(x: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
    """Compute RMSNorm by one kernel, which moves what that of LayerNorm moves. Other devices have none for it."""
    return aten.native_layer_norm(x, shape, weight, None, eps)[0]  # type: ignore[no-any-return]


def attention_of_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Compute attention by the kernel that torch takes on a H100 (section C of benchmarks/results/gpu_check_h100.json).

    FlashAttention takes no mask, the memory-efficient kernel no fewer heads of keys than of queries. With both, and in
    float32 with fewer heads, plain products are left. As torch does, convert a mask of bools for each call, and copy a
    mask whose rows do not start at multiples of 8 elements.
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    if half and attn_mask is None:
        flash = aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        attn_mask = torch.where(attn_mask, 0.0, torch.full((), -torch.inf, dtype=query.dtype, device=query.device))
    if enable_gqa:
        plain = aten._scaled_dot_product_attention_math
        return plain(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True)[0]  # type: ignore[no-any-return]
    if attn_mask is not None:
        if any(stride % 8 for stride in attn_mask.stride()[:-1]):
            attn_mask = torch.nn.functional.pad(attn_mask, (0, -attn_mask.shape[-1] % 8))[..., : attn_mask.shape[-1]]
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    backward = torch.is_grad_enabled() and any(part.requires_grad for part in (query, key, value))
    efficient = aten._scaled_dot_product_efficient_attention
    return efficient(query, key, value, attn_mask, backward, dropout_p, is_causal, scale=scale)[0]  # type: ignore[no-any-return]
