"""Answers to validation rows while training, by the decoder of `infer` and with the adapter as it is, not merged.

Validation loss and ROUGE-L of generated answers part ways: the loss can rise while answers still improve. Answers are
greedy and at most as long as the longest reference. ROUGE-L is that of words in any script, without stems. So no
param of `infer` or `evaluate` changes what training does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from howto.core.errors import UserError
from howto.core.schema import Row
from howto.evaluation.rouge import Rouge
from howto.inference.config import Infer
from howto.inference.decoder import Request
from howto.inference.generator import Generator
from howto.modeling.chat import Chat
from howto.modeling.collate import Example
from howto.modeling.distributed.process_group import ProcessGroup

if TYPE_CHECKING:
    from howto.training.forward import Engine

KEY = "params.yaml: train.validation_answers"
BATCH_SIZE = 64  # rows that are decoded at once
GREEDY: dict[str, Any] = {"temperature": 0.0, "top_p": 1.0, "top_k": None, "seeds": [0], "stop": []}
PLAIN: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": None, "max_prompt_tokens": None}


class ValidationAnswers:
    """Scores the adapter of an engine by its answers to some of the validation rows."""

    def __init__(
        self, engine: Engine, chat: Chat, rows: Sequence[Row], examples: Sequence[Example], *, count: int, fsdp: bool
    ) -> None:
        """Choose up to `count` of the rows that are `examples` too, by a hash of their ids.

        With `fsdp` every process answers all rows, because they compute each layer together. Raise UserError if there
        is no row, or the model's window leaves no room for an answer.
        """
        self._engine, self._is_shared = engine, not fsdp
        row_of = {row.id: row for row in rows}
        chosen = sorted(examples, key=lambda one: hashlib.blake2b(one.id.encode()).digest())[:count]
        if not chosen:
            raise UserError(f"{KEY}: expected validation rows, got none. Raise prepare.split.validation, or set null.")
        longest = max(len(example.completion) for example in chosen)
        decoding = Infer(max_new_tokens=longest, **GREEDY, **PLAIN)
        with engine.own_attention():
            self._generator = Generator(engine.base, chat, decoding, batch_size=BATCH_SIZE)
            self._attention = engine.base.config._attn_implementation
        self._requests = [Request(one) for one in chosen if len(one.prompt) <= self._generator.longest_prompt]
        if not self._requests:
            raise UserError(f"{KEY}: no prompt leaves room for answers of {longest} tokens. Set it to null.")
        self._rouge = Rouge(use_stemmer=False, tokenizer="unicode")
        texts = {one.id: (row_of[one.id].output, *row_of[one.id].references) for one in chosen}
        self._references = {id: [self._rouge.tokens(text) for text in of_row] for id, of_row in texts.items()}

    def rouge_l(self, group: ProcessGroup) -> float:
        """Answer the rows, and return the mean F of ROUGE-L, in 0..1; of several references the best one counts.

        The processes of the group share the rows, and each gets the same mean. Raise UserError if memory ran out.
        """
        own = group.shard(self._requests) if self._is_shared else self._requests
        with self._engine.own_attention():
            self._engine.base.set_attn_implementation(self._attention)
            try:
                answers = list(self._generator.generate(own, progress="" if group.rank else "answer"))
            except UserError:
                raise UserError(f"{KEY}: out of memory. Lower it, or set it to null.") from None
            finally:
                self._generator.free_memory()
                self._attention = self._engine.base.config._attn_implementation  # another one for longer rows
        scores = {answer.request.row.id: self._score(answer.request.row.id, answer.text) for answer in answers}
        found = {id: score for part in group.all_gather(scores) for id, score in part.items()}
        return fmean(found[request.row.id] for request in self._requests)

    def _score(self, id: str, text: str) -> float:
        answer = self._rouge.tokens(text)
        return max(self._rouge.rouge_l(reference, answer).fmeasure for reference in self._references[id])
