"""Answers to many prompts: the loop that fills the slots, chooses tokens, and says when a row has ended.

In float32 a greedy answer is a function of its own prompt alone. Sums over a batch are rounded in another order than
those over a row, which matters where two tokens are all but equally likely: there, and there alone, the row is computed
once more by itself, and that decides.

On a GPU the loop runs one step ahead. The next step needs only tokens that are on the device already, so it is launched
before the host has read them. The GPU then computes while the host looks for rows that have ended.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from howto.inference.config import Infer
from howto.inference.kv_cache import Flight
from howto.inference.sampling import Sampler, chances_of
from howto.inference.stop_strings import StopStrings
from howto.modeling.async_copy import async_tolist
from howto.modeling.collate import Example

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


@dataclass(eq=False)
class _Row:
    """A row in flight. The host has read the `tokens` of its answer; the device may have chosen one more."""

    request: Request
    slot: int | None  # None after the row has left
    tokens: list[int] = field(default_factory=list)
    chosen: int = 0  # tokens, read or not
    starts: list[int] = field(default_factory=lambda: [0])  # see `StopStrings`
    has_ended: bool = False
    followers: defaultdict[tuple[int, ...], list[int]] = field(default_factory=lambda: defaultdict(list))

    def append(self, token: int, ngram: int | None) -> None:
        """Add a token to the answer, and note the runs of `ngram` tokens that it now holds."""
        self.tokens.append(token)
        if ngram and len(self.tokens) >= ngram:
            self.followers[tuple(self.tokens[len(self.tokens) - ngram : -1])].append(token)

    def forbidden(self, ngram: int) -> list[int]:
        """Return the tokens that would repeat a run of `ngram` tokens of the answer."""
        return self.followers.get(tuple(self.tokens[len(self.tokens) - ngram + 1 :]), [])


@dataclass(frozen=True)
class _Step:
    """A step that was launched. `tokens` waits for the token of each row."""

    rows: list[_Row]
    tokens: Callable[[], list[int]]


class Decoder:
    """A model that answers."""

    def __init__(
        self,
        model: PreTrainedModel,
        flight: Flight,
        tokenizer: PreTrainedTokenizerBase,
        params: Infer,
        *,
        runs_ahead: bool | None = None,
    ) -> None:
        """`flight` computes the model.

        With `runs_ahead` each step is launched before the host has read the tokens of the step before. The host then
        decides no near ties. None: on a GPU, unless the host has to decide something between two steps.

        Raises:
            ValueError: `runs_ahead` and `no_repeat_ngram_size`, which needs all tokens on the host.
        """
        self._flight, self._tokenizer, self._params = flight, tokenizer, params
        self._vocabulary = int(model.config.vocab_size)
        is_precise = model.dtype in (torch.float32, torch.float64)
        bans_repeats = params.no_repeat_ngram_size is not None
        if runs_ahead and bans_repeats:
            raise ValueError("runs_ahead does not support no_repeat_ngram_size")
        if runs_ahead is None:
            runs_ahead = model.device.type == "cuda" and not is_precise and not bans_repeats
        self._steps_ahead = int(runs_ahead)
        self._settles = is_precise and not runs_ahead
        self._sampler = Sampler(params, finds_close=self._settles)
        self._stop_strings = StopStrings(tokenizer, params.stop)
        self._rows: list[_Row] = []
        size, device = flight.capacity, model.device
        self._device = device.type
        self._tokens = torch.zeros(size, dtype=torch.int64, device=device)  # the last one of each row
        self._places = torch.zeros(size, dtype=torch.int64, device=device)  # and where it stands
        self._chances = self._chosen = self._seen = None
        if self._sampler.samples:
            self._chosen = torch.zeros_like(self._tokens)  # how many tokens of each answer
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
        unread: deque[_Step] = deque()
        try:
            while waiting or self._rows or unread:
                has_work = bool(waiting or self._rows)
                if has_work:
                    unread.append(self._launch(waiting))
                if len(unread) > self._steps_ahead or not has_work:
                    yield from self._read(unread.popleft(), watch)
        finally:
            self._rows = []

    def _launch(self, waiting: deque[Request]) -> _Step:
        """Let waiting rows enter, or compute a step of the rows in flight; and choose their tokens."""
        count, capacity = len(self._rows), self._flight.capacity
        free = capacity - count
        if waiting and (not count or free >= min(len(waiting), max(1, capacity // AT_ONCE))):
            return self._choose(self._enter(waiting, free), count)
        longest = max(len(row.request.prompt) + row.chosen for row in self._rows)
        return self._choose(self._flight.step(self._tokens[:count], self._places[:count], longest), 0)

    def _enter(self, waiting: deque[Request], free: int) -> torch.Tensor:
        """Give waiting rows the free slots, as many as may be computed at once; their logits [rows, vocabulary]."""
        entering: list[_Row] = []
        size = 0
        while waiting and len(entering) < free:
            size += len(waiting[0].prompt)
            if entering and size > ENTERING[self._device]:
                break
            entering.append(_Row(waiting.popleft(), len(self._rows) + len(entering)))
        first = len(self._rows)
        self._rows += entering
        for slot, row in enumerate(entering, first):
            request = row.request
            self._places[slot] = len(request.prompt) - 1
            if self._chances is not None and self._chosen is not None:
                self._chosen[slot] = 0
                chances = chances_of(request.key, request.seed, self._params.max_new_tokens)
                self._chances[slot] = torch.from_numpy(chances)
            if self._seen is not None:
                self._seen[slot] = False
                self._seen[slot, request.prompt] = True
        return self._flight.enter([row.request.prompt for row in entering], first)

    def _choose(self, logits: torch.Tensor, first: int) -> _Step:
        """Choose a token for each of the rows from slot `first` on. A row whose answer has no room for more leaves."""
        rows = self._rows[first:]
        here = slice(first, first + len(rows))
        chances = None
        if self._chances is not None and self._chosen is not None:
            chances = self._chances[here].gather(1, self._chosen[here, None])[:, 0]
            self._chosen[here] += 1
        seen = self._seen[here] if self._seen is not None else None
        logits = self._without_repeats(logits, rows)
        choice = self._sampler.choose(logits, chances, seen)
        if self._settles:
            for number in choice.close.nonzero().flatten().tolist():
                choice.tokens[number] = self._settle(rows[number], first + number)
        self._tokens[here] = choice.tokens
        self._places[here] += 1
        if seen is not None:
            seen.scatter_(1, self._tokens[here, None], True)
        step = _Step(rows, async_tolist(choice.tokens))
        for row in rows:
            row.chosen += 1
        for row in reversed(rows):
            if row.chosen == self._params.max_new_tokens:
                self._leave(row)
        return step

    def _read(self, step: _Step, watch: Callable[[int, list[int]], None] | None) -> Iterator[Answer]:
        """Append the tokens of a step to its rows, and yield the answers that they end."""
        for row, token in zip(step.rows, step.tokens(), strict=True):
            if row.has_ended:  # in the step before, when this one had been launched
                continue
            answer = self._end(row, token)
            if watch and token != self._tokenizer.eos_token_id:
                watch(row.request.index, row.tokens)
            if answer:
                row.has_ended = True
                yield answer
        for row in reversed(step.rows):
            if row.has_ended and row.slot is not None:
                self._leave(row)

    def _end(self, row: _Row, token: int) -> Answer | None:
        """Put the token behind the row's answer; the answer, if that ends it."""
        if token == self._tokenizer.eos_token_id:
            return self._answer(row, "eos", self._text(row))
        row.append(token, self._params.no_repeat_ngram_size)
        text = self._stop_strings.cut(row.tokens, row.starts)
        if text is not None:
            return self._answer(row, "stop", text)
        if len(row.tokens) == self._params.max_new_tokens:
            return self._answer(row, "length", self._text(row))
        return None

    def _text(self, row: _Row) -> str:
        return str(self._tokenizer.decode(row.tokens, skip_special_tokens=True))

    def _answer(self, row: _Row, stop: str, text: str) -> Answer:
        return Answer(row.request.index, text.strip(), len(row.request.prompt), len(row.tokens), stop)

    def _leave(self, row: _Row) -> None:
        """Free the row's slot: the last row in use takes it, so that those in use stay the first ones."""
        last = self._rows.pop()
        slot, row.slot = row.slot, None
        if last is row:
            return
        assert slot is not None
        self._rows[slot], last.slot = last, slot
        self._flight.move(len(self._rows), slot)
        for state in (self._tokens, self._places, self._chosen, self._chances, self._seen):
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
