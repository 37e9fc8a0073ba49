"""Rows in flight: each has a slot for its keys and values, and all are computed in one forward pass.

A row that has ended frees its slot for one that waits, so the batch is full until none waits any more (continuous
batching, Yu et al. 2022, "Orca"). New rows come in packed, without padding, each seeing itself alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache

from howto.core.errors import UserError
from howto.inference.cuda_graphs import Graphs
from howto.modeling.async_copy import async_tensor
from howto.modeling.collate import Batch, Example, pack
from howto.modeling.packed_attention import packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "slots"
ALIGNED = 8  # elements of a mask: 16 bytes in bfloat16
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.25}  # of logits, beside the model's own


class Flight(Protocol):
    """What computes the rows in flight; the first ones of `capacity` slots are in use."""

    capacity: int

    def enter(self, rows: Sequence[list[int]], first: int) -> torch.Tensor:
        """Let rows take the slots from `first` on; the logits [rows, vocabulary] of what comes next."""

    def step(self, tokens: torch.Tensor, places: torch.Tensor, longest: int) -> torch.Tensor:
        """Put a token [slots in use] behind each row, at its place [slots in use]; the logits of what comes next.

        `longest` is the largest place and 1.
        """

    def move(self, source: int, target: int) -> None:
        """Let the row of one slot take another one."""

    def logits(self, rows: Sequence[Example]) -> torch.Tensor:
        """The logits [response tokens, vocabulary] at the response tokens of rows, in no slot."""


def use_slots(model: PreTrainedModel, probe: list[int]) -> bool:
    """Let the model attend as `Slots` needs it, if that gives what its own attention gives for the prompt `probe`.

    If not, which is so where attention caps its scores or looks back through a window, the model stays as it was.
    """
    one, slots = OneRow(model), Slots(model, 2, len(probe) + 1)
    more, place = (torch.tensor([number], device=model.device) for number in (probe[0], len(probe)))
    wanted = [one.enter([probe], 0), one.step(more, place, len(probe) + 1)]
    before = model.config._attn_implementation
    AttentionInterface.register(NAME, _attention)
    try:
        model.set_attn_implementation(NAME)
        # Two rows, so that one which saw the other would not go unnoticed.
        entered = slots.enter([probe[: max(1, len(probe) // 2)], probe], 0)[1:]
        slots.move(1, 0)
        if _agree(entered, wanted[0]) and _agree(slots.step(more, place, len(probe) + 1), wanted[1]):
            return True
    except (UserError, ValueError, TypeError):
        pass
    model.set_attn_implementation(before)
    return False


def _agree(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).abs().max() <= TOLERANCE[wanted.dtype] * max(1.0, float(wanted.abs().max())))


class Slots:
    """Many rows at once, each of at most `length` tokens, for a model that `use_slots` has taken."""

    def __init__(self, model: PreTrainedModel, capacity: int, length: int) -> None:
        self.capacity, self._length = capacity, length
        self._model = model
        self._cache: torch.Tensor | None = None  # [layers, keys and values, slots, heads, length, head size]
        # Which tokens of a pass are kept, and where; none: not kept. The tokens of a shared prefix go to many slots.
        self._slots = self._places = torch.zeros(0, dtype=torch.int64)
        self._kept: torch.Tensor | None = None  # flat positions in the pass; None: all, in their order
        self._longest = 0  # place and 1 that a step looks at; 0 where rows enter
        self._mask: torch.Tensor | None = None  # of this step, for all layers; see `_mask_for`
        self._graphs = Graphs(self.pass_through, capacity, length) if model.device.type == "cuda" else None

    def enter(self, rows: Sequence[list[int]], first: int) -> torch.Tensor:
        """As `Flight` says."""
        device = self._model.device
        examples = [Example("", row[:-1], row[-1:]) for row in rows]
        batch = pack(examples, device, share_prefix=device.type == "cpu")
        assert batch.row_ends is not None
        self._slots = async_tensor([slot for slot, row in enumerate(rows, first) for _ in row], device)
        self._places = async_tensor([place for row in rows for place in range(len(row))], device)
        self._kept = None
        ends = batch.row_ends.tolist() if device.type == "cpu" else [0]  # on a GPU there is no shared prefix
        if ends[0]:
            shared = torch.arange(ends[0])
            own = (torch.arange(start, end) for start, end in pairwise(ends))
            self._kept = torch.cat([part for of_row in own for part in (shared, of_row)])
        return self._packed(batch, batch.row_ends[1:].long() - 1)

    def logits(self, rows: Sequence[Example]) -> torch.Tensor:
        """As `Flight` says."""
        device = self._model.device
        batch = pack(list(rows), device, share_prefix=device.type == "cpu")
        self._slots = self._places = batch.labels[:0]
        return self._packed(batch, batch.label_positions)

    def _packed(self, batch: Batch, places: torch.Tensor) -> torch.Tensor:
        self._longest = 0
        output = self._model(**batch.model_inputs(), slots=self, use_cache=False, logits_to_keep=places)
        return output.logits[0]  # type: ignore[no-any-return]

    def step(self, tokens: torch.Tensor, places: torch.Tensor, longest: int) -> torch.Tensor:
        """As `Flight` says."""
        if self._graphs:
            return self._graphs.step(tokens, places, longest)
        return self.pass_through(tokens, places, longest)

    def pass_through(self, tokens: torch.Tensor, places: torch.Tensor, longest: int) -> torch.Tensor:
        """A step in which no row looks beyond the first `longest` places."""
        self._slots, self._places, self._longest = torch.arange(len(tokens), device=tokens.device), places, longest
        self._kept = self._mask = None
        output = self._model(
            input_ids=tokens[:, None], position_ids=places[:, None], slots=self, use_cache=False, logits_to_keep=1
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def move(self, source: int, target: int) -> None:
        """As `Flight` says."""
        if self._cache is not None:
            self._cache[:, :, target] = self._cache[:, :, source]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, more: Any) -> Any:
        """Keep the keys and values of a pass, and attend; arguments and result as in `packed_attention`.

        In a step there is a row for each slot in use: `query` [rows, heads, 1, head size].
        """
        if len(self._slots):
            self._keep(layer, key, value)
        if not self._longest:
            return packed_attention(torch.nn.Identity(), query, key, value, None, **more)[0]
        window, cap = more.get("sliding_window"), more.get("softcap")
        if cap is not None or (window is not None and self._longest > window):
            raise UserError("attention that is not computed here")
        assert self._cache is not None
        keys, values = self._cache[layer, :, : len(query), :, : self._longest]
        # The heads that share keys are computed as several queries of one head, so that keys are read once. Each head
        # of keys is a row of its own: kernels put the heads of a row behind its queries, and a copy would follow.
        rows, heads, _, size = query.shape
        pairs = rows * keys.shape[1]
        if self._mask is None:
            self._mask = self._mask_for(keys.shape[1], query.dtype)
        attended = scaled_dot_product_attention(
            query.reshape(pairs, 1, -1, size),
            keys.view(pairs, 1, self._longest, size),
            values.view(pairs, 1, self._longest, size),
            attn_mask=self._mask,
            scale=more.get("scaling"),
        )
        return attended.reshape(rows, 1, heads, size)

    def _mask_for(self, heads: int, dtype: torch.dtype) -> torch.Tensor:
        """Return what a step adds to the scores of each row and head of keys [rows * heads, 1, 1, longest].

        It is 0 for what a row sees, and -inf for what comes later. A GPU would convert a mask of bools for each layer,
        and copy one whose lines do not start at multiples of 16 bytes.
        """
        width = -(-self._longest // ALIGNED) * ALIGNED
        hidden = torch.arange(width, device=self._places.device) > self._places[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
        return mask.repeat_interleave(heads, dim=0)[:, None, None, : self._longest]

    def _keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        if self._cache is None:
            layers = int(self._model.config.num_hidden_layers)
            self._cache = key.new_zeros(layers, 2, self.capacity, key.shape[1], self._length, key.shape[3])
        with _in_any_order():
            for kept, new in zip(self._cache[layer], (key, value), strict=True):
                tokens = new.transpose(1, 2).flatten(0, 1)  # [tokens, heads, head size]
                kept[self._slots, :, self._places] = tokens if self._kept is None else tokens[self._kept]


@contextmanager
def _in_any_order() -> Iterator[None]:
    """Let writes to places that differ take the fast kernel: a deterministic one would sort them first."""
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
    slots: Slots,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """In the form of transformers' attention functions."""
    return slots.attend(int(module.layer_idx), query, key, value, more), None  # type: ignore[arg-type]


class OneRow:
    """One row at a time, by the model's own attention and cache: what `Slots` has to agree with."""

    capacity = 1

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)

    def enter(self, rows: Sequence[list[int]], first: int) -> torch.Tensor:
        """As `Flight` says."""
        (row,) = rows
        assert first == 0
        self._cache = DynamicCache(config=self._model.config)
        return self._forward(torch.tensor([row], device=self._model.device))

    def step(self, tokens: torch.Tensor, places: torch.Tensor, longest: int) -> torch.Tensor:
        """As `Flight` says."""
        assert len(tokens) == len(places) == 1
        return self._forward(tokens[None])

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def move(self, source: int, target: int) -> None:
        """There is but one slot."""

    def logits(self, rows: Sequence[Example]) -> torch.Tensor:
        """As `Flight` says."""
        found = []
        for row in rows:
            ids = torch.tensor([[*row.prompt, *row.completion]], device=self._model.device)
            output = self._model(input_ids=ids, use_cache=False, logits_to_keep=len(row.completion) + 1)
            found.append(output.logits[0, :-1])
        return torch.cat(found)
