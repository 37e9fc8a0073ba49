"""A model from its folder, with or without its adapter, that answers rows.

Base and adapter get the same prompts, the same decoder and the same parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from howto.core.errors import UserError, is_out_of_memory
from howto.core.schema import Row
from howto.inference.config import Infer
from howto.inference.decoder import Answer, Decoder, OnToken, Request
from howto.inference.kv_cache import KVCache, OneRowCache, one_row_cache, use_kv_cache
from howto.inference.references import mean_log_probabilities
from howto.modeling.adapters.adapter import load_adapter, merge_adapter
from howto.modeling.adapters.fused_lora import HIDDEN_STATE_TOLERANCE, relative_error, use_fused_lora, use_fused_norms
from howto.modeling.adapters.grouped_lora import GroupedLora
from howto.modeling.chat import PROBE, Chat
from howto.modeling.collate import Example, encode_row
from howto.modeling.context_window import context_window, exceeded_window, longest_prompt
from howto.modeling.distributed.process_group import ProcessGroup
from howto.modeling.loading import load_base, load_chat

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Generator:
    """A model that answers rows: the base, or the base with an adapter."""

    def __init__(self, model: PreTrainedModel, chat: Chat, decoding: Infer, *, batch_size: int) -> None:
        """Answer up to `batch_size` rows at once with the model, which computes attention in its own way until now.

        Raise UserError if answers leave no room for a prompt.
        """
        self.chat, self._model, self._decoding = chat, model, decoding
        self._longest_row = context_window(model.config)  # tokens
        limits = decoding.max_new_tokens, decoding.max_prompt_tokens
        self.longest_prompt = longest_prompt(self._longest_row, *limits, Path(model.config._name_or_path))
        self._batch_size, self._own_attention = batch_size, model.config._attn_implementation
        self._cache: KVCache | OneRowCache = KVCache(self._model, 0, 0)
        self._decoder: Decoder | None = None
        self._check_cache(chat.prompt_ids(PROBE))

    @classmethod
    def load(
        cls,
        base: Path,
        adapter: Path | None,
        decoding: Infer,
        *,
        batch_size: int,
        precision: str,
        device: torch.device,
    ) -> Generator:
        """Load a model, with or without an adapter.

        Raise UserError if a model folder is missing or damaged, the adapter was made for another base, or answers leave
        no room for a prompt.
        """
        chat = load_chat(base)
        model = load_base(base, precision, device)
        if adapter:
            adapted = load_adapter(model, adapter, base)
            if model.dtype == torch.float32:  # merging would round bfloat16 weights, and change answers
                model = merge_adapter(adapted, adapter)
            else:
                use_unmerged_adapter(adapted, model.dtype, chat.prompt_ids(PROBE))
        if device.type == "cuda":
            use_fused_norms(model)
        return cls(model.requires_grad_(False), chat, decoding, batch_size=batch_size)

    def free_memory(self) -> None:
        """Free the KV cache and its graphs; the next answers allocate them again."""
        if isinstance(self._cache, KVCache):
            self._cache, self._decoder = KVCache(self._model, 0, 0), None

    def encode(self, row: Row) -> Example:
        """Return a row as token ids, with a prompt of at most `longest_prompt` tokens."""
        return encode_row(self.chat, row, max_prompt=self.longest_prompt)

    def reference_log_probabilities(self, rows: Sequence[Example], group: ProcessGroup) -> dict[str, float]:
        """Return, by row id, the mean log-probability of the references, in nats, end of sequence included.

        A row is left out if prompt and reference together are too long for the model. The processes of the group share
        the work, and each gets all results.
        """
        rows = [row for row in rows if row.prompt and len(row) <= self._longest_row]
        self._check_length(max(map(len, rows), default=0))
        vocabulary = int(self._model.config.get_text_config(decoder=True).vocab_size)
        means = mean_log_probabilities(self._cache, rows, vocabulary, group)
        return {row.id: round(mean, 6) for row, mean in zip(rows, means, strict=True)}

    def generate(
        self, requests: Sequence[Request], *, progress: str = "", on_token: OnToken | None = None
    ) -> Iterator[Answer]:
        """Yield the answers as they end. A row without a prompt gets an empty answer.

        `progress` names a progress bar, which only a terminal shows.

        Raise UserError if memory ran out.
        """
        yield from (Answer(request, "", 0, "too_long") for request in requests if not request.row.prompt)
        requests = [request for request in requests if request.row.prompt]
        if not requests:
            return
        try:
            answers = self._decoder_for(requests).decode(requests, on_token)
            hide = None if progress else True  # None: hide it unless in a terminal
            yield from tqdm(answers, total=len(requests), desc=progress, unit="row", disable=hide, leave=None)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            what, advice = "1 row in flight", "lower infer.max_new_tokens or infer.max_prompt_tokens"
            if (size := self._cache.capacity) > 1:
                what, advice = f"{size} rows in flight", f"set batch_size: {size // 2} under profiles.*.infer"
            raise UserError(f"infer: out of memory with {what}; {advice} in params.yaml, or free memory") from None

    def _decoder_for(self, requests: Sequence[Request]) -> Decoder:
        """Return a decoder whose cache is large enough."""
        length = max(len(request.row.prompt) for request in requests) + self._decoding.max_new_tokens
        self._check_length(length)
        capacity = min(self._batch_size, len(requests))
        if self._decoder is None or capacity > self._cache.capacity or length > self._cache.length:
            if isinstance(self._cache, KVCache):
                self._cache = KVCache(self._model, capacity, length)
            self._decoder = Decoder(self._model, self._cache, self.chat, self._decoding)
        return self._decoder

    def _check_length(self, longest: int) -> None:
        """Check the cache again before rows of up to `longest` tokens exceed a window of the model's attention."""
        window = exceeded_window(self._model.config, longest)
        if window >= len(self._probe) and isinstance(self._cache, KVCache):
            self._model.set_attn_implementation(self._own_attention)
            self._check_cache((self._probe * (2 + window // len(self._probe)))[: window + len(self._probe)])

    @torch.inference_mode()
    def _check_cache(self, probe: list[int]) -> None:
        """Answer one row at a time if a prompt like `probe` has other logits in the batched cache than by itself."""
        self._probe = probe[: self._longest_row - 2]
        if not use_kv_cache(self._model, self._probe):
            print(f"note: {type(self._model).__name__} answers one row at a time, which is slower", file=sys.stderr)
            self._batch_size, self._cache, self._decoder = 1, one_row_cache(self._model, self._probe), None


def use_unmerged_adapter(adapted: PeftModel, dtype: torch.dtype, probe: list[int]) -> None:
    """Compute an adapter beside its base, in the base's precision; `probe` is a prompt to check fast paths with."""
    use_fused_lora(adapted, 0.0)
    if adapted.peft_config["default"].peft_type == "LORA":  # other kinds have buffers too, of which PEFT takes care
        for weight in adapted.parameters():
            weight.data = weight.data.to(dtype)
    if next(adapted.parameters()).device.type == "cuda":
        use_grouped_lora(adapted, probe)


@torch.inference_mode()
def use_grouped_lora(adapted: PeftModel, probe: list[int]) -> bool:
    """Compute adapters that read the same tensor together, if the hidden states stay the same but for rounding."""
    decoder = adapted.get_base_model().get_decoder()
    sample = {"input_ids": torch.tensor([probe], device=next(adapted.parameters()).device)}
    expected = decoder(**sample).last_hidden_state
    try:
        groups = GroupedLora(decoder, sample)
    except RuntimeError:  # another kind of adapter
        return False
    is_same = relative_error(decoder(**sample).last_hidden_state, expected) <= HIDDEN_STATE_TOLERANCE[expected.dtype]
    if not is_same:
        groups.undo()
    return is_same
