"""The decoding loop: fill the slots of the cache with rows, choose tokens, and see where each answer ends.

In float32, a greedy answer depends on its own prompt alone. A sum over a batch is rounded in another order than the sum
over one row, which matters where two tokens are almost equally likely. For such a tie, the row is computed once more by
itself, and that decides.

In bfloat16 on a GPU, the loop runs one step ahead. The next step needs only tokens that are already on the device, so
it is launched before the host has read them. Then the GPU computes while the host looks for answers that have ended.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from howto.inference.config import Infer
from howto.inference.kv_cache import KVCache, OneRowCache
from howto.inference.sampling import Sampler, uniform_numbers
from howto.inference.stop_strings import StopStrings
from howto.modeling.async_copy import async_tolist
from howto.modeling.chat import Chat
from howto.modeling.collate import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFILL_TOKENS = {"cpu": 2**10, "cuda": 2**13}  # prompt tokens in one forward pass; on a CPU what its cache holds
REFILL_SHARE = 8  # rows wait until one slot in so many is free: a forward pass for each row would cost more


@dataclass(frozen=True, eq=False)
class Request:
    """A row to answer. Sampled answers draw their random numbers from the row's id and `seed`."""

    row: Example
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What the model wrote. `stop` is as in `howto.core.schema.Prediction`."""

    request: Request
    text: str
    new_tokens: int
    stop: str


OnToken = Callable[[Request, list[int]], None]  # called after each new token, with all tokens of the answer so far


@dataclass(eq=False)
class _Sequence:
    """An answer in progress. The host has read `tokens`; the device may have chosen one more."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    chosen: int = 0  # tokens, read or not
    has_ended: bool = False
    followers: defaultdict[tuple[int, ...], list[int]] = field(default_factory=lambda: defaultdict(list))

    def append(self, token: int, ngram_size: int | None) -> None:
        """Add a token to the answer, and remember the n-gram that it completes."""
        self.tokens.append(token)
        if ngram_size and len(self.tokens) >= ngram_size:
            self.followers[tuple(self.tokens[len(self.tokens) - ngram_size : -1])].append(token)

    def repeating_tokens(self, ngram_size: int) -> list[int]:
        """Return the tokens that would repeat an n-gram of the answer."""
        return self.followers.get(tuple(self.tokens[len(self.tokens) - ngram_size + 1 :]), [])


_Step = tuple[list[_Sequence], Callable[[], list[int]]]  # a launched step; the function waits for its tokens


class Decoder:
    """Decodes answers with one model and one cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: KVCache | OneRowCache,
        chat: Chat,
        decoding: Infer,
        *,
        run_ahead: bool | None = None,
    ) -> None:
        """`run_ahead` excludes `no_repeat_ngram_size`, and leaves ties unresolved. None: on a GPU in bfloat16."""
        self._cache, self._chat, self._decoding = cache, chat, decoding
        is_precise = model.dtype in (torch.float32, torch.float64)
        if run_ahead is None:
            run_ahead = model.device.type == "cuda" and not is_precise and decoding.no_repeat_ngram_size is None
        self._steps_ahead = int(run_ahead)
        self._resolves_ties = is_precise and not run_ahead
        self._sampler = Sampler(decoding, find_ties=self._resolves_ties)
        self._stop_strings = StopStrings(chat.tokenizer, decoding.stop)
        self._prefill_tokens = PREFILL_TOKENS[model.device.type]
        self._running: list[_Sequence] = []  # by slot; the other slots are free
        # The state of each slot, on the device.
        slots, device = cache.capacity, model.device
        self._tokens = torch.zeros(slots, dtype=torch.int64, device=device)  # the last one of each row
        self._positions = torch.zeros_like(self._tokens)  # of that token
        self._chosen = torch.zeros_like(self._tokens)  # tokens of each answer; counted only for random numbers
        columns = decoding.max_new_tokens if self._sampler.is_random else 0
        self._uniforms = torch.zeros(slots, columns, dtype=torch.float64, device=device)  # one for each token
        columns = int(model.config.get_text_config(decoder=True).vocab_size) if self._sampler.uses_penalty else 0
        self._seen = torch.zeros(slots, columns, dtype=torch.bool, device=device)  # tokens that the row contains

    @torch.inference_mode()
    def decode(self, requests: Sequence[Request], on_token: OnToken | None = None) -> Iterator[Answer]:
        """Yield the answers as they end. The longest prompts start first, so that memory runs out early or never."""
        waiting = deque(sorted(requests, key=lambda request: -len(request.row.prompt)))
        self._running = []
        unread: deque[_Step] = deque()
        while waiting or self._running or unread:
            has_work = bool(waiting or self._running)
            if has_work:
                unread.append(self._launch(waiting))
            if len(unread) > self._steps_ahead or not has_work:
                yield from self._read(unread.popleft(), on_token)

    def _launch(self, waiting: deque[Request]) -> _Step:
        """Prefill waiting rows, or decode a step of the running ones. Then choose their next tokens."""
        running, capacity = len(self._running), self._cache.capacity
        free = capacity - running
        if waiting and (not running or free >= min(len(waiting), max(1, capacity // REFILL_SHARE))):
            return self._choose(self._prefill(waiting, free), running)
        reach = max(len(one.request.row.prompt) + one.chosen for one in self._running)
        return self._choose(self._cache.decode(self._tokens[:running], self._positions[:running], reach), 0)

    def _prefill(self, waiting: deque[Request], free: int) -> torch.Tensor:
        """Give waiting rows free slots, within the token limit of one pass; return their logits [rows, vocabulary]."""
        first = len(self._running)
        prompts: list[list[int]] = []
        size = 0
        while waiting and len(prompts) < free:
            size += len(waiting[0].row.prompt)
            if prompts and size > self._prefill_tokens:
                break
            request, slot = waiting.popleft(), first + len(prompts)
            self._running.append(_Sequence(request))
            prompts.append(request.row.prompt)
            self._positions[slot] = len(request.row.prompt) - 1
            if self._sampler.is_random:
                uniforms = uniform_numbers(request.row.id, request.seed, self._decoding.max_new_tokens)
                self._uniforms[slot] = torch.from_numpy(uniforms)
                self._chosen[slot] = 0
            if self._sampler.uses_penalty:
                self._seen[slot] = False
                self._seen[slot, request.row.prompt] = True
        return self._cache.prefill(prompts, first)

    def _choose(self, logits: torch.Tensor, first: int) -> _Step:
        """Choose a token for each row from slot `first` on. A row whose answer is then full leaves the cache."""
        sequences = self._running[first:]
        slots = slice(first, first + len(sequences))
        uniforms = None
        if self._sampler.is_random:
            uniforms = self._uniforms[slots].gather(1, self._chosen[slots, None])[:, 0]
            self._chosen[slots] += 1
        logits = self._without_repeats(logits, sequences)
        tokens, is_tie = self._sampler.choose(logits, uniforms, self._seen[slots])
        if self._resolves_ties:
            for index in is_tie.nonzero().flatten().tolist():
                tokens[index] = self._resolve_tie(sequences[index], first + index)
        self._tokens[slots] = tokens
        self._positions[slots] += 1
        if self._sampler.uses_penalty:
            self._seen[slots].scatter_(1, self._tokens[slots, None], True)
        read_tokens = async_tolist(tokens)
        for index, sequence in reversed(list(enumerate(sequences))):
            sequence.chosen += 1
            if sequence.chosen == self._decoding.max_new_tokens:
                self._free_slot(first + index)
        return sequences, read_tokens

    def _read(self, step: _Step, on_token: OnToken | None) -> Iterator[Answer]:
        """Append the tokens of a step to their answers, and yield the answers that end."""
        sequences, read_tokens = step
        for sequence, token in zip(sequences, read_tokens(), strict=True):
            if sequence.has_ended:  # in the step before, after this one was launched
                continue
            answer = self._append(sequence, token)
            if on_token and token not in self._chat.ends:
                on_token(sequence.request, sequence.tokens)
            if answer:
                sequence.has_ended = True
                yield answer
        for sequence in reversed(sequences):
            if sequence.has_ended and sequence in self._running:
                self._free_slot(self._running.index(sequence))

    def _append(self, sequence: _Sequence, token: int) -> Answer | None:
        """Append a token to an answer, and return the answer if it ends."""
        if token in self._chat.ends:
            return self._answer(sequence, "eos")
        sequence.append(token, self._decoding.no_repeat_ngram_size)
        text = self._stop_strings.cut(sequence.tokens)
        if text is not None:
            return self._answer(sequence, "stop", text)
        if len(sequence.tokens) == self._decoding.max_new_tokens:
            return self._answer(sequence, "length")
        return None

    def _answer(self, sequence: _Sequence, stop: str, text: str | None = None) -> Answer:
        if text is None:
            text = str(self._chat.tokenizer.decode(sequence.tokens, skip_special_tokens=True))
        return Answer(sequence.request, text.strip(), len(sequence.tokens), stop)

    def _free_slot(self, slot: int) -> None:
        """Remove the sequence in a slot. The last one moves there, so that the first slots stay in use."""
        last = len(self._running) - 1
        self._running[slot] = self._running[last]
        self._running.pop()
        if slot < last:
            self._cache.move(last, slot)
            for state in (self._tokens, self._positions, self._chosen, self._uniforms, self._seen):
                state[slot] = state[last]

    def _without_repeats(self, logits: torch.Tensor, sequences: Sequence[_Sequence]) -> torch.Tensor:
        """Return the logits [rows, vocabulary], with -inf for tokens that would repeat an n-gram of the answer."""
        size = self._decoding.no_repeat_ngram_size
        if size is None:
            return logits
        banned = [(row, token) for row, one in enumerate(sequences) for token in one.repeating_tokens(size)]
        if not banned:
            return logits
        index = torch.tensor(banned, device=logits.device)
        return logits.index_put((index[:, 0], index[:, 1]), logits.new_tensor(-torch.inf))

    def _resolve_tie(self, sequence: _Sequence, slot: int) -> int:
        """Return the next token of a row, computed by itself."""
        ids = [*sequence.request.row.prompt, *sequence.tokens]
        logits = self._cache.logits([Example("", ids, [0])])  # where a next token would be, whichever it is
        logits = self._without_repeats(logits, [sequence])
        uniforms = self._uniforms[slot, len(sequence.tokens)][None] if self._sampler.is_random else None
        return int(self._sampler.choose(logits, uniforms, self._seen[slot][None])[0])
