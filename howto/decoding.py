"""Answers to many prompts: the loop that fills the slots, chooses tokens, and says when a row has ended.

In float32 a greedy answer is a function of its own prompt alone. Sums over a batch are rounded in another order than
those over a row, which matters where two tokens are all but equally likely: there, and there alone, the row is computed
once more by itself, and that decides.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from howto.batches import Example
from howto.params.infer import Infer
from howto.sampling import Sampler, chances_of
from howto.slots import Flight

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENTERING = {"cpu": 2**10, "cuda": 2**13}  # tokens of prompts that are computed at once; on a CPU what its cache holds
AT_ONCE = 8  # new rows wait until one in so many slots is free: a forward pass for each would cost more
LOGITS = 2**24  # that are held at once where references are scored: 64 MiB in float32
SCORED = 2**14  # tokens of prompts and references that are computed at once, if not of a single row


@dataclass(frozen=True)
class Request:
    """A prompt to be answered. `key` and `seed` are what its chances are drawn from."""

    index: int
    prompt: list[int]
    key: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What the model wrote. `stop` is "eos", "length", or "stop" for one of the strings that end an answer."""

    index: int
    text: str
    prompt_tokens: int
    new_tokens: int
    stop: str


@dataclass
class _Row:
    """A row in flight; `tokens` are those of its answer so far."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    followers: defaultdict[tuple[int, ...], list[int]] = field(default_factory=lambda: defaultdict(list))

    def append(self, token: int, ngram: int | None) -> None:
        """Add a token to the answer, and note the runs of `ngram` tokens that it now holds."""
        self.tokens.append(token)
        if ngram and len(self.tokens) >= ngram:
            self.followers[tuple(self.tokens[len(self.tokens) - ngram : -1])].append(token)

    def forbidden(self, ngram: int) -> list[int]:
        """Return the tokens that would repeat a run of `ngram` tokens of the answer."""
        return self.followers.get(tuple(self.tokens[len(self.tokens) - ngram + 1 :]), [])


class Decoder:
    """A model that answers."""

    def __init__(
        self, model: PreTrainedModel, flight: Flight, tokenizer: PreTrainedTokenizerBase, params: Infer
    ) -> None:
        """`flight` computes the model."""
        self._flight, self._tokenizer, self._params = flight, tokenizer, params
        self._vocabulary = int(model.config.vocab_size)
        self._settles = model.dtype in (torch.float32, torch.float64)
        self._sampler = Sampler(params, finds_close=self._settles)
        self._rows: list[_Row] = []
        size, device = flight.capacity, model.device
        self._device = device.type
        self._tokens = torch.zeros(size, dtype=torch.int64, device=device)  # the last one of each row
        self._places = torch.zeros(size, dtype=torch.int64, device=device)  # and where it stands
        self._chances = self._seen = None
        if self._sampler.samples:
            self._chances = torch.zeros(size, params.max_new_tokens, dtype=torch.float64, device=device)
        if self._sampler.penalises:
            self._seen = torch.zeros(size, self._vocabulary, dtype=torch.bool, device=device)

    @torch.inference_mode()
    def answers(
        self, requests: Sequence[Request], watch: Callable[[int, list[int]], None] | None = None
    ) -> Iterator[Answer]:
        """Yield an answer to each request, as they come; the longest prompts begin (memory fails early).

        `watch` is told each new token: the index of the request, and its answer so far.
        """
        waiting = deque(sorted(requests, key=lambda request: (-len(request.prompt), request.index)))
        self._rows = []
        try:
            while waiting or self._rows:
                free = self._flight.capacity - len(self._rows)
                if waiting and (not self._rows or free >= min(len(waiting), max(1, self._flight.capacity // AT_ONCE))):
                    first = len(self._rows)
                    logits = self._enter(waiting, free)
                else:
                    first, count = 0, len(self._rows)
                    longest = max(len(row.request.prompt) + len(row.tokens) for row in self._rows)
                    logits = self._flight.step(self._tokens[:count], self._places[:count], longest)
                yield from self._take(logits, first, watch)
        finally:
            self._rows = []

    def _enter(self, waiting: deque[Request], free: int) -> torch.Tensor:
        """Give waiting rows the free slots, as many as may be computed at once; their logits [rows, vocabulary]."""
        entering: list[_Row] = []
        size = 0
        while waiting and len(entering) < free:
            size += len(waiting[0].prompt)
            if entering and size > ENTERING[self._device]:
                break
            entering.append(_Row(waiting.popleft()))
        first = len(self._rows)
        self._rows += entering
        for slot, row in enumerate(entering, first):
            request = row.request
            self._places[slot] = len(request.prompt) - 1
            if self._chances is not None:
                chances = chances_of(request.key, request.seed, self._params.max_new_tokens)
                self._chances[slot] = torch.from_numpy(chances)
            if self._seen is not None:
                self._seen[slot] = False
                self._seen[slot, request.prompt] = True
        return self._flight.enter([row.request.prompt for row in entering], first)

    def _take(
        self, logits: torch.Tensor, first: int, watch: Callable[[int, list[int]], None] | None
    ) -> Iterator[Answer]:
        """Choose a token for each of the rows from slot `first` on, and yield those that it ends."""
        rows = self._rows[first:]
        here = slice(first, first + len(rows))
        chances = None
        if self._chances is not None:
            written = torch.tensor([len(row.tokens) for row in rows], device=logits.device)
            chances = self._chances[here].gather(1, written[:, None])[:, 0]
        seen = self._seen[here] if self._seen is not None else None
        logits = self._without_repeats(logits, rows)
        choice = self._sampler.choose(logits, chances, seen)
        tokens: list[int] = choice.tokens.tolist()
        if self._settles:
            for number in choice.close.nonzero().flatten().tolist():
                tokens[number] = self._settle(rows[number], first + number)
                choice.tokens[number] = tokens[number]
        self._tokens[here] = choice.tokens
        self._places[here] += 1
        if seen is not None:
            seen.scatter_(1, self._tokens[here, None], True)
        ended = []
        for number, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            answer = self._end(row, token)
            if watch and token != self._tokenizer.eos_token_id:
                watch(row.request.index, row.tokens)
            if answer:
                yield answer
                ended.append(first + number)
        for slot in reversed(ended):
            self._leave(slot)

    def _end(self, row: _Row, token: int) -> Answer | None:
        """Put the token behind the row's answer; the answer, if that ends it."""
        if token == self._tokenizer.eos_token_id:
            return self._answer(row, "eos", self._text(row))
        row.append(token, self._params.no_repeat_ngram_size)
        if self._params.stop:
            text = self._text(row)
            found = [place for place in map(text.find, self._params.stop) if place >= 0]
            if found:
                return self._answer(row, "stop", text[: min(found)])
        if len(row.tokens) == self._params.max_new_tokens:
            return self._answer(row, "length", self._text(row))
        return None

    def _text(self, row: _Row) -> str:
        return str(self._tokenizer.decode(row.tokens, skip_special_tokens=True))

    def _answer(self, row: _Row, stop: str, text: str) -> Answer:
        return Answer(row.request.index, text.strip(), len(row.request.prompt), len(row.tokens), stop)

    def _leave(self, slot: int) -> None:
        """Free a slot: the last row in use takes it, so that those in use stay the first ones."""
        last = self._rows.pop()
        if slot == len(self._rows):
            return
        self._rows[slot] = last
        self._flight.move(len(self._rows), slot)
        for state in (self._tokens, self._places, self._chances, self._seen):
            if state is not None:
                state[slot] = state[len(self._rows)]

    def _without_repeats(self, logits: torch.Tensor, rows: Sequence[_Row]) -> torch.Tensor:
        """Return the logits [rows, vocabulary], with -inf for what would repeat a run of tokens in its own answer."""
        size = self._params.no_repeat_ngram_size
        if size is None:
            return logits
        places = [(number, token) for number, row in enumerate(rows) for token in row.forbidden(size)]
        if not places:
            return logits
        index = torch.tensor(places, device=logits.device)
        return logits.index_put((index[:, 0], index[:, 1]), logits.new_tensor(-torch.inf))

    def _settle(self, row: _Row, slot: int) -> int:
        """The row's next token, computed by itself."""
        ids = [*row.request.prompt, *row.tokens]
        logits = self._flight.logits([Example("", ids, [0])])  # at the place of what comes next
        logits = self._without_repeats(logits, [row])
        chances = self._chances[slot, len(row.tokens)][None] if self._chances is not None else None
        seen = self._seen[slot][None] if self._seen is not None else None
        return int(self._sampler.choose(logits, chances, seen).tokens[0])

    @torch.inference_mode()
    def mean_log_probabilities(
        self, examples: Sequence[Example], rank: int = 0, size: int = 1
    ) -> Iterator[float | None]:
        """Yield for each example the mean log-probability, in nats, of its response tokens after its prompt.

        The end of sequence is one of them. With the mean over a data set, weighted by tokens, the perplexity of the
        references is exp(-mean). Of `size` processes that share the work, the one with this `rank` yields its share,
        and None for the rest: which examples are computed together does not depend on how many processes there are.
        """
        for number, rows in enumerate(_parts(examples, most=LOGITS // self._vocabulary)):
            if number % size != rank:
                yield from [None] * len(rows)
                continue
            logits = self._flight.logits(rows).float()  # [response tokens, vocabulary]
            labels = torch.tensor([token for row in rows for token in row.completion], device=logits.device)
            found = (logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(dim=1)).double()
            for part in torch.split(found, [len(row.completion) for row in rows]):
                yield part.mean().item()


def _parts(examples: Sequence[Example], most: int) -> Iterator[list[Example]]:
    """The examples, in their order, in parts of at most `most` response tokens and SCORED tokens in all, or of one."""
    part: list[Example] = []
    size = whole = 0
    for example in examples:
        size, whole = size + len(example.completion), whole + len(example)
        if part and (size > most or whole > SCORED):
            yield part
            part, size, whole = [], len(example.completion), len(example)
        part.append(example)
    if part:
        yield part
