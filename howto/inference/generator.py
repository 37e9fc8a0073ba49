"""A model from a folder, with or without its adapter, ready to answer rows.

Base and adapter go the same way: the same prompts, the same engine, the same decoding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from howto.core.errors import UserError, is_out_of_memory
from howto.core.schema import Row
from howto.inference.config import Infer
from howto.inference.decoder import Answer, Decoder, Request
from howto.inference.kv_cache import OneRow, Slots, use_slots
from howto.modeling.collate import Example
from howto.modeling.fused_lora import HIDDEN_STATE_TOLERANCE, relative_error, use_fused_lora, use_fused_norms
from howto.modeling.grouped_lora import GroupedLora
from howto.modeling.loading import load_adapter, load_base, load_tokenizer
from howto.modeling.prompt import completion_ids, prompt_ids, shorten_input

if TYPE_CHECKING:
    from peft import PeftModel

    from howto.modeling.distributed.process_group import ProcessGroup

PROBE = ("Write instructions.", "How do I tie a knot?")  # a prompt to try a model with


def use_unmerged(adapted: PeftModel, dtype: torch.dtype, probe: list[int]) -> None:
    """Let an adapter compute beside its base, in the base's precision; `probe` is a prompt to try it with."""
    use_fused_lora(adapted, 0.0)
    for weight in adapted.parameters():
        weight.data = weight.data.to(dtype)
    if next(adapted.parameters()).device.type == "cuda":
        use_groups(adapted, probe)


@torch.inference_mode()
def use_groups(adapted: PeftModel, probe: list[int]) -> bool:
    """Compute adapters of one input together (see `grouped`), if that gives the same hidden states but for rounding."""
    decoder = adapted.get_base_model().get_decoder()
    sample = {"input_ids": torch.tensor([probe], device=next(adapted.parameters()).device)}
    wanted = decoder(**sample).last_hidden_state
    try:
        groups = GroupedLora(decoder, sample)
    except RuntimeError:  # adapters of another kind
        return False
    if relative_error(decoder(**sample).last_hidden_state, wanted) <= HIDDEN_STATE_TOLERANCE[wanted.dtype]:
        return True
    groups.undo()
    return False


class Answering:
    """The base model, or the base with its adapter."""

    def __init__(
        self,
        base: Path,
        adapter: Path | None,
        decoding: Infer,
        *,
        batch_size: int,
        precision: str,
        device: torch.device,
    ) -> None:
        """`batch_size` rows are in flight at once.

        Raises:
            UserError: a model folder is missing or damaged, or the adapter was made for another base.
        """
        self.tokenizer = load_tokenizer(base)
        model = load_base(base, precision, device)
        self.reads = int(model.config.max_position_embeddings)  # tokens
        if adapter:
            adapted = load_adapter(model, adapter, base)
            if model.dtype == torch.float32:  # merged, bfloat16 weights would be rounded, and answer otherwise
                model = adapted.merge_and_unload()
            else:
                use_unmerged(adapted, model.dtype, prompt_ids(self.tokenizer, *PROBE))
        if device.type == "cuda":
            use_fused_norms(model)
        self._model, self._decoding, self._batch_size = model.requires_grad_(False), decoding, batch_size
        self._longest = self.reads - decoding.max_new_tokens
        if decoding.max_prompt_tokens is not None:
            self._longest = min(self._longest, decoding.max_prompt_tokens)
        with torch.inference_mode():
            self._many = use_slots(self._model, prompt_ids(self.tokenizer, *PROBE))
        if not self._many:
            print(f"infer: a {type(model).__name__} answers one row at a time, and so is slower", file=sys.stderr)
        self._decoder: Decoder | None = None
        self._slots = 0, 0  # of the decoder: how many, and for prompts of how many tokens

    @property
    def longest_prompt(self) -> int:
        """What a prompt may have, in tokens."""
        return self._longest

    def fit(self, rows: Sequence[Row]) -> list[str | None]:
        """The rows' inputs, as much as fits into a prompt: the context loses words from its end; None if that is
        not enough."""
        return [shorten_input(self.tokenizer, row, self._longest) for row in rows]

    def answers(
        self,
        rows: Sequence[Row],
        inputs: Sequence[str | None],
        wanted: Sequence[tuple[int, int]],
        *,
        bar: str = "",
        watch: Callable[[int, list[int]], None] | None = None,
    ) -> Iterator[tuple[int, int, Answer]]:
        """Yield (number of the row, seed, answer) for each pair `wanted` of the first two, as they come.

        `inputs` is what `fit` gave; a row without gets an empty answer. `bar` is the name of the progress bar, which
        is shown in a terminal; `watch` is told the number of a wanted pair, and its answer's tokens so far.
        """
        requests = []
        for index, (number, seed) in enumerate(wanted):
            text = inputs[number]
            if text is None:
                yield number, seed, Answer(index, "", 0, 0, "too_long")
            else:
                prompt = prompt_ids(self.tokenizer, rows[number].instruction, text)
                requests.append(Request(index, prompt, rows[number].id, seed))
        if not requests:
            return
        written = 0
        with tqdm(total=len(requests), desc=bar, unit="row", disable=None if bar else True) as progress:
            for answer in self._decoded(requests, watch):
                yield *wanted[answer.index], answer
                written += answer.new_tokens
                progress.update()
                seconds = progress.format_dict["elapsed"]
                progress.set_postfix_str(f"{written / max(seconds, 1e-6):,.0f} tok/s", refresh=False)

    def _decoded(self, requests: Sequence[Request], watch: Callable[[int, list[int]], None] | None) -> Iterator[Answer]:
        """Yield an answer to each request.

        Raises:
            UserError: memory ran out.
        """
        try:
            yield from self._decoder_for([request.prompt for request in requests]).answers(requests, watch)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            size = self._slots[0] if self._many else 1
            rows, what = "1 row", "lower infer.max_new_tokens or infer.max_prompt_tokens"
            if size > 1:
                rows, what = f"{size} rows", f"set batch_size: {size // 2} under profiles.*.infer"
            raise UserError(
                f"infer: out of memory with {rows} in flight; {what} in params.yaml, or free memory"
            ) from None

    def _decoder_for(self, prompts: Sequence[list[int]]) -> Decoder:
        """A decoder whose slots are long enough, and as many as can be used."""
        size, longest = min(self._batch_size, len(prompts)), max(map(len, prompts))
        if self._decoder is None or size > self._slots[0] or longest > self._slots[1]:
            self._slots = size, longest
            length = longest + self._decoding.max_new_tokens
            flight = Slots(self._model, size, length) if self._many else OneRow(self._model)
            self._decoder = Decoder(self._model, flight, self.tokenizer, self._decoding)
        return self._decoder

    def references(
        self, rows: Sequence[Row], inputs: Sequence[str | None], group: ProcessGroup | None = None
    ) -> list[tuple[int, float | None]]:
        """The tokens of each row's reference, and their mean log-probability, in nats, after the row's prompt.

        The end of sequence is one of them. The second is None where prompt and reference are too long for the model.
        The processes of a `group` share the work, and each is given the whole.
        """
        examples, places = [], []
        found: list[tuple[int, float | None]] = []
        for number, (row, text) in enumerate(zip(rows, inputs, strict=True)):
            asked = row.intent if text is None else text
            completion = completion_ids(self.tokenizer, row.instruction, asked, row.output)
            found.append((len(completion), None))
            if text is None:
                continue
            example = Example(row.id, prompt_ids(self.tokenizer, row.instruction, asked), completion)
            if len(example) <= self.reads:
                examples.append(example)
                places.append(number)
        if examples:
            decoder = self._decoder_for([example.prompt for example in examples])
            share = (group.rank, group.size) if group else (0, 1)
            own = list(decoder.mean_log_probabilities(examples, *share))
            for values in group.all_gather(own) if group else [own]:
                for number, value in zip(places, values, strict=True):
                    if value is not None:
                        found[number] = found[number][0], round(value, 6)
        return found
