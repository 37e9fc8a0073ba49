"""The KV cache: keys and values of many rows, and the forward passes that fill and read it.

Each row has a slot. A row that ends frees its slot for a waiting one, so the batch stays full (continuous batching, Yu
et al. 2022, "Orca"). New rows are packed, without padding, and each attends to itself alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache

from howto.core.errors import is_out_of_memory
from howto.inference.cuda_graphs import DecodeGraphs
from howto.modeling.async_copy import async_tensor
from howto.modeling.collate import Batch, Example, pack
from howto.modeling.context_window import context_window
from howto.modeling.packed_attention import packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "howto_kv_cache"  # the name under which transformers knows the attention below
MASK_MULTIPLE = 8  # elements: 16 bytes in bfloat16
LOGIT_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.25}  # relative to the largest


def use_kv_cache(model: PreTrainedModel, probe: list[int]) -> bool:
    """Switch the model to the attention that `KVCache` needs, and return True.

    If the logits for the prompt `probe` then differ from those of the model's own attention, the model stays unchanged.
    """
    rows = OneRowCache(model)
    expected = rows.logits([Example("", probe, [probe[0], 0])])
    before = model.config._attn_implementation
    AttentionInterface.register(ATTENTION, _attention)
    with _ignore_unsupported():
        model.set_attn_implementation(ATTENTION)
        cache = KVCache(model, 2, len(probe) + 1)
        # With a second row, a row that attended to another one would be noticed.
        prefilled = cache.prefill([probe[: max(1, len(probe) // 2)], probe], 0)[1:]
        cache.move(1, 0)
        token, position = (torch.tensor([number], device=model.device) for number in (probe[0], len(probe)))
        if _are_same(torch.cat([prefilled, cache.decode(token, position, len(probe) + 1)]), expected):
            return True
    model.set_attn_implementation(before)
    return False


def one_row_cache(model: PreTrainedModel, probe: list[int]) -> OneRowCache:
    """Return a cache for one row. It is the model's own, if that gives the logits of a whole pass for `probe`."""
    cache = OneRowCache(model)
    expected = cache.logits([Example("", probe, [probe[0], 0])])
    with _ignore_unsupported():
        prefilled, token = cache.prefill([probe], 0), torch.tensor([probe[0]], device=model.device)
        if _are_same(torch.cat([prefilled, cache.decode(token, token, len(probe) + 1)]), expected):
            return cache
    return OneRowCache(model, keeps_nothing=True)


def _are_same(logits: torch.Tensor, expected: torch.Tensor) -> bool:
    limit = LOGIT_TOLERANCE[expected.dtype] * max(1.0, float(expected.abs().max()))
    return bool((logits - expected).abs().max() <= limit)


@contextmanager
def _ignore_unsupported() -> Iterator[None]:
    """Ignore what an architecture raises that computes attention in another way, but not that memory ran out."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise


class KVCache:
    """Keys and values of up to `capacity` rows of up to `length` tokens, for a model that `use_kv_cache` switched."""

    def __init__(self, model: PreTrainedModel, capacity: int, length: int) -> None:
        self.capacity, self.length = capacity, length
        self._model = model
        self._cache: torch.Tensor | None = None  # [layers, 2 (keys, values), slots, heads, length, head size]
        # What the current forward pass stores, and where. A token of a shared prefix goes to many slots.
        self._slots = self._positions = torch.zeros(0, dtype=torch.int64)  # [stored tokens]
        self._sources: torch.Tensor | None = None  # [stored tokens], flat indices in the pass; None: all in order
        self._reach = 0  # positions that a decode step attends to; 0 in other passes
        self._masks: dict[int | None, torch.Tensor] = {}  # of a decode step, by window; see `_step_mask`
        self._graphs = DecodeGraphs(self.decode_eagerly, capacity, length) if model.device.type == "cuda" else None

    def prefill(self, prompts: Sequence[list[int]], first: int) -> torch.Tensor:
        """Put prompts into the slots from `first` on; return the logits [prompts, vocabulary] of the next tokens."""
        device = self._model.device
        on_cpu = device.type == "cpu"
        batch = pack([Example("", ids[:-1], ids[-1:]) for ids in prompts], device, share_prefix=on_cpu)
        assert batch.row_ends is not None
        self._slots = async_tensor([slot for slot, ids in enumerate(prompts, first) for _ in ids], device)
        self._positions = async_tensor([position for ids in prompts for position in range(len(ids))], device)
        self._sources = None
        if on_cpu and (prefix := int(batch.row_ends[0])):
            own = (torch.arange(start, end) for start, end in pairwise(batch.row_ends.tolist()))
            self._sources = torch.cat([part for row in own for part in (torch.arange(prefix), row)])
        return self._packed_logits(batch, batch.row_ends[1:].long() - 1)

    def logits(self, examples: Sequence[Example]) -> torch.Tensor:
        """Return the logits [completion tokens, vocabulary] of the completions; nothing is stored."""
        device = self._model.device
        batch = pack(list(examples), device, share_prefix=device.type == "cpu")
        self._slots = self._positions = batch.labels[:0]
        return self._packed_logits(batch, batch.label_positions)

    def _packed_logits(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        self._reach = 0
        output = self._model(**batch.model_inputs(), kv_cache=self, use_cache=False, logits_to_keep=positions)
        return output.logits[0]  # type: ignore[no-any-return]

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, reach: int) -> torch.Tensor:
        """Append a token to each of the first rows, and return the logits [rows, vocabulary] of the next tokens.

        `tokens` [rows] are stored at `positions` [rows]. `reach` is the largest position + 1.
        """
        decode = self._graphs.decode if self._graphs else self.decode_eagerly
        return decode(tokens, positions, reach)

    def decode_eagerly(self, tokens: torch.Tensor, positions: torch.Tensor, reach: int) -> torch.Tensor:
        """Do as `decode`, without a CUDA graph."""
        self._slots, self._positions = torch.arange(len(tokens), device=tokens.device), positions
        self._sources, self._reach, self._masks = None, reach, {}
        output = self._model(
            input_ids=tokens[:, None], position_ids=positions[:, None], kv_cache=self, use_cache=False, logits_to_keep=1
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def move(self, source: int, target: int) -> None:
        """Copy the row in slot `source` to slot `target`."""
        if self._cache is not None:
            self._cache[:, :, target] = self._cache[:, :, source]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Any) -> Any:
        """Store the keys and values of a pass, and attend; arguments and result as in `packed_attention`.

        In a decode step, `query` is [rows, heads, 1, head size].
        """
        if len(self._slots):
            self._store(layer, key, value)
        if not self._reach:
            return packed_attention(torch.nn.Identity(), query, key, value, None, **options)[0]
        assert self._cache is not None
        keys, values = self._cache[layer, :, : len(query), :, : self._reach]
        # Query heads that share a key head are computed as queries of one head, so its keys are read once. Each key
        # head is a row of the batch: kernels lay out a row's heads behind its queries, which would cost a copy.
        rows, heads, _, size = query.shape
        pairs = rows * keys.shape[1]
        window = options.get("sliding_window")
        window = window if window is not None and window < self._reach else None
        if (mask := self._masks.get(window)) is None:
            mask = self._masks[window] = self._step_mask(keys.shape[1], query.dtype, window)
        query = query.reshape(pairs, 1, -1, size)
        keys, values = keys.view(pairs, 1, self._reach, size), values.view(pairs, 1, self._reach, size)
        if (softcap := options.get("softcap")) is None:
            scaling = options.get("scaling")
            attended = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling)
        else:
            scores = softcap * torch.tanh(query * options["scaling"] @ keys.transpose(2, 3) / softcap)
            attended = torch.softmax(scores + mask, dim=-1) @ values
        return attended.reshape(rows, 1, heads, size)

    def _step_mask(self, heads: int, dtype: torch.dtype, window: int | None) -> torch.Tensor:
        """Return the additive mask [rows * key heads, 1, 1, reach]: 0 up to a row's position, -inf elsewhere.

        With a window it is 0 for the last so many positions alone.

        A GPU would convert a mask of bools, and copy one whose rows are not aligned to 16 bytes, for each layer.
        """
        width = -(-self._reach // MASK_MULTIPLE) * MASK_MULTIPLE
        places, last = torch.arange(width, device=self._positions.device), self._positions[:, None]
        hidden = places > last
        if window is not None:
            hidden |= places <= last - window
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
        return mask.repeat_interleave(heads, dim=0)[:, None, None, : self._reach]

    def _store(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        if self._cache is None:
            layers = int(self._model.config.get_text_config(decoder=True).num_hidden_layers)
            self._cache = key.new_zeros(layers, 2, self.capacity, key.shape[1], self.length, key.shape[3])
        with _unsorted_writes():
            for stored, new in zip(self._cache[layer], (key, value), strict=True):
                tokens = new.transpose(1, 2).flatten(0, 1)  # [tokens, heads, head size]
                stored[self._slots, :, self._positions] = tokens if self._sources is None else tokens[self._sources]


@contextmanager
def _unsorted_writes() -> Iterator[None]:
    """Let writes to distinct places use the fast kernel: the deterministic one sorts them first."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    kv_cache: KVCache,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend, with the signature of transformers' attention functions."""
    return kv_cache.attend(int(module.layer_idx), query, key, value, options), None  # type: ignore[arg-type]


class OneRowCache:
    """One row at a time, by the model's own attention: the reference for `KVCache`, with its methods.

    It uses the model's own KV cache, unless it `keeps_nothing`: then each step computes the whole row again.
    """

    capacity = 1

    def __init__(self, model: PreTrainedModel, *, keeps_nothing: bool = False) -> None:
        self._model, self._keeps_nothing = model, keeps_nothing
        self.length = context_window(model.config)

    def prefill(self, prompts: Sequence[list[int]], first: int) -> torch.Tensor:
        """See `KVCache`."""
        (prompt,) = prompts
        self._ids = torch.zeros(1, 0, dtype=torch.int64, device=self._model.device)  # of the row so far
        self._cache = None if self._keeps_nothing else DynamicCache(config=self._model.config)
        return self._forward(torch.tensor([prompt], device=self._model.device))

    def decode(self, tokens: torch.Tensor, positions: torch.Tensor, reach: int) -> torch.Tensor:
        """See `KVCache`."""
        return self._forward(tokens[None])

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self._cache is None:
            self._ids = torch.cat([self._ids, ids], dim=1)
            return self._model(input_ids=self._ids, use_cache=False, logits_to_keep=1).logits[:, -1]  # type: ignore[no-any-return]
        output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def move(self, source: int, target: int) -> None:
        """See `KVCache`. With one slot, there is nothing to move."""

    def logits(self, examples: Sequence[Example]) -> torch.Tensor:
        """See `KVCache`."""
        found = []
        for example in examples:
            ids = torch.tensor([[*example.prompt, *example.completion]], device=self._model.device)
            count = len(example.completion) + 1
            output = self._model(input_ids=ids, use_cache=False, logits_to_keep=count)
            found.append(output.logits[0, -count:-1])
        return torch.cat(found)
