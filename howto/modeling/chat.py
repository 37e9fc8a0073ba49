"""Turn a row into the tokens of a prompt, and an answer into those of a completion, as the base model's own chat
template writes them.

The ids of a prompt are those of `tokenizer.apply_chat_template` on the same messages. The one exception is a text that
contains a control token: only the template can place one, so `</s>` in a user's text is tokenised as characters.
A template can also use the variables `intent` and `context`, the two parts of the last message of the user.
"""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_left
from collections.abc import Iterable
from datetime import date
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from tokenizers import Tokenizer

from howto.core.errors import UserError, one_line
from howto.core.schema import Row, input_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = Row(
    id="probe",
    category="",
    instruction="Write instructions.",
    input="How do I tie a knot?",
    context="",
    output="Cross the ends.",
)


class _Rendered(NamedTuple):
    """A prompt as text, and the same with each of the template's `controls` control tokens under its alias."""

    text: str
    aliased: str
    controls: int


class Chat:
    """How a chat model writes a conversation: its tokenizer, its chat template, and the tokens that end an answer.

    `ends` are those tokens, and `end` is the one that the template puts behind an answer: the one to learn. `note` says
    what is unusual about the template, or is "".
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Iterable[int] = (), *, today: date) -> None:
        """Find out how the template takes its messages. `ends` are the end tokens that the model's files list.

        `today` is the date for a template that puts in today's, so that the prompt is the same on every day.

        Raise UserError if the tokenizer has no chat template or is not a fast one, the template drops a text, or no
        token ends an answer.
        """
        if not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template. Take a chat model, or set model.chat_template.")
        if not tokenizer.is_fast:
            raise UserError("expected a fast tokenizer (tokenizer.json), got another kind. Convert it.")
        self.tokenizer = tokenizer
        try:
            self._template = _with_fixed_date(tokenizer.get_chat_template(), today)
        except ValueError:
            names = ", ".join(sorted(tokenizer.chat_template))
            raise UserError(f"no chat template is the default one of {names}. Set model.chat_template.") from None
        self._controls = re.compile("(?!)")  # matches nothing
        self._has_system, self._has_parts = self._find_layout()
        self.note = "" if self._has_system else "the chat template has no system role; the instruction goes to the user"
        prompt, whole = self._render(PROBE), self._render_answer()
        self.ends = frozenset(ends) | ({tokenizer.eos_token_id} - {None})
        controls = self._find_controls(whole + prompt)
        self._controls = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))) or "(?!)")
        self._ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in controls}
        self._alias = {token: f"<|{secrets.token_hex(8)}|>" for token in controls}  # occurs in no text

        space = whole[len(prompt) :].partition(PROBE.output)[0] if whole.startswith(prompt) else ""
        self._before = space if space.isspace() else ""  # the template's own space before an answer
        behind = self._controls.match(whole.rpartition(PROBE.output)[2].lstrip())
        if not behind and not self.ends:
            raise UserError("neither the tokenizer (eos_token) nor the chat template ends an answer with a token.")
        end = self._ids[behind[0]] if behind else tokenizer.eos_token_id
        self.end = min(self.ends) if end is None else int(end)
        self.ends |= {self.end}

    def prompt_ids(self, row: Row) -> list[int]:
        """Return the token ids of a row's prompt, up to where the answer begins.

        Raise UserError if the template refuses the row's messages or drops a text of them.
        """
        return self._encode(self._prompt(row))

    def completion_ids(self, row: Row) -> list[int]:
        """Return the token ids of a row's answer, and of the token that ends it. Raises as `prompt_ids`.

        How a word is tokenised depends on what precedes it. So the answer is tokenised together with the prompt, which
        is then taken off.
        """
        prompt, answer = self._prompt(row), self._before + row.output
        before = self._encode(prompt)
        both = self._encode(_Rendered(prompt.text + answer, prompt.aliased + answer, prompt.controls))
        alone = _Rendered(answer, answer, 0)
        ids = both[len(before) :] if both[: len(before)] == before else self._encode(alone)
        return [*ids, self.end]

    def shorten(self, row: Row, limit: int) -> Row | None:
        """Return the row with as much of its history and context as fits into a prompt of `limit` tokens.

        The oldest turns are dropped first, then words from the end of the context. None if the prompt is too long
        without either.
        """

        def fits(row: Row) -> bool:
            return len(self.prompt_ids(row)) <= limit

        def with_words(count: int) -> Row:
            context = " ".join(words[:count])
            return row.model_copy(update={"input": input_of(row.intent, context), "context": context})

        for start in range(0, len(row.history) + 1, 2):  # a turn of the user and the answer to it
            row = row.model_copy(update={"history": row.history[2 if start else 0 :]})
            if fits(row):
                return row
        words = row.context.split(" ")
        if not fits(with_words(0)):
            return None
        return with_words(bisect_left(range(1, len(words)), True, key=lambda count: not fits(with_words(count))))

    def _find_layout(self) -> tuple[bool, bool]:
        """Return whether the template has a system role, and whether a message is a list of parts.

        Raise UserError if it drops the instruction or the intent in every layout.
        """
        problem = "it drops the instruction or the user's text"
        for self._has_system, self._has_parts in product((True, False), (False, True)):
            try:
                self._prompt(PROBE)
            except UserError as error:
                problem = str(error)
                continue
            return self._has_system, self._has_parts
        raise UserError(f"the chat template cannot be used: {problem}. Name another one in model.chat_template.")

    def _find_controls(self, rendered: str) -> list[str]:
        """Return the special tokens, and other added tokens that end an answer or that the template writes.

        The rest of the added tokens are ordinary text in some tokenizers: runs of spaces, HTML tags.
        """
        tokens = self.tokenizer.added_tokens_decoder
        special = {token.content for id, token in tokens.items() if token.special or id in self.ends}
        others = {token.content for token in tokens.values() if not token.content.isspace()}
        return [*special, *(text for text in others - special if text in rendered or text in self._template)]

    def _messages(self, row: Row) -> list[dict[str, Any]]:
        """Return the messages of a prompt."""
        texts = [*((str(turn.role), turn.content) for turn in row.history), ("user", row.input)]
        if row.instruction and self._has_system:
            texts.insert(0, ("system", row.instruction))
        elif row.instruction:
            texts[0] = ("user", f"{row.instruction}\n\n{texts[0][1]}")
        return [self._message(role, text) for role, text in texts]

    def _message(self, role: str, text: str) -> dict[str, Any]:
        return {"role": role, "content": [{"type": "text", "text": text}] if self._has_parts else text}

    def _render(self, row: Row, *more: dict[str, Any]) -> str:
        """Return a row's messages as the template writes them, up to where the next answer begins, or with `more`."""
        return str(
            self.tokenizer.apply_chat_template(
                [*self._messages(row), *more],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=not more,
                intent=row.intent,
                context=row.context,
            )
        )

    def _render_answer(self) -> str:
        """Return the probe with its answer, or "" if the template takes no answer."""
        try:
            return self._render(PROBE, self._message("assistant", PROBE.output))
        except Exception:  # as in `_prompt`
            return ""

    def _prompt(self, row: Row) -> _Rendered:
        earlier = [turn.content for turn in row.history if turn.role == "user"]
        texts = [row.instruction, *earlier, row.intent, row.context]
        everything = "".join([row.instruction, *(turn.content for turn in row.history), row.input, row.output])
        guard = next(mark for mark in map(chr, range(0xFDD0, 0x10FFFF)) if mark not in everything)
        try:
            rendered = self._render(self._guarded(row, guard))
        except Exception as error:  # a template is a program, which can fail in any way
            raise UserError(f"row {row.id}: the chat template refuses it ({one_line(error)})") from None
        aliased, controls = self._controls.subn(lambda match: self._alias[match[0]], rendered)
        text = rendered.replace(guard, "")
        if missing := next((one for one in texts if one.strip() not in text), None):
            raise UserError(f"row {row.id}: the chat template drops or changes a text ({missing.strip()!r:.40})")
        return _Rendered(text, aliased.replace(guard, ""), controls)

    def _guarded(self, row: Row, guard: str) -> Row:
        """Return a row in whose texts that character breaks up what looks like a control token."""

        def guarded(text: str) -> str:
            return self._controls.sub(lambda match: match[0][0] + guard + match[0][1:], text)

        history = tuple(turn.model_copy(update={"content": guarded(turn.content)}) for turn in row.history)
        intent, context = guarded(row.intent), guarded(row.context)
        texts = {"instruction": guarded(row.instruction), "input": input_of(intent, context), "context": context}
        return row.model_copy(update={**texts, "history": history})

    def _encode(self, rendered: _Rendered) -> list[int]:
        ids = list(self.tokenizer(rendered.text, add_special_tokens=False, verbose=False).input_ids)
        if self._count_controls(ids) == len(self._controls.findall(rendered.text)) == rendered.controls:
            return ids
        ids = self._text_tokenizer.encode(rendered.aliased, add_special_tokens=False).ids
        if self._count_controls(ids) != rendered.controls:
            raise UserError(f"the tokenizer makes a control token of a plain text: {rendered.text!r:.200}")
        return ids

    def _count_controls(self, ids: list[int]) -> int:
        unknown = self.tokenizer.unk_token_id  # stands for a character that the tokenizer does not know
        controls = {*self._ids.values()} - {unknown}
        return sum(token in controls for token in ids)

    @cached_property
    def _text_tokenizer(self) -> Tokenizer:
        """The tokenizer with each control token under its alias, so that its own name is plain text."""
        spec = json.loads(self.tokenizer.backend_tokenizer.to_str())
        spec["post_processor"] = spec["truncation"] = spec["padding"] = None
        for token in spec["added_tokens"]:
            token["content"] = self._alias.get(token["content"], token["content"])
        model = spec["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {self._alias.get(token, token): number for token, number in model["vocab"].items()}
        else:
            model["vocab"] = [[self._alias.get(token, token), score] for token, score in model["vocab"]]
        if model.get("unk_token"):
            model["unk_token"] = self._alias.get(model["unk_token"], model["unk_token"])
        return Tokenizer.from_str(json.dumps(spec))


def _with_fixed_date(template: str, today: date) -> str:
    """Return a chat template in which `strftime_now` gives a fixed date: a macro hides transformers' function."""
    if "strftime_now" not in template:
        return template
    codes = [f"%{flag}{letter}" for flag in ("", "-") for letter in "aAbBcdeFHIjmMpSuUwWxXyYzZ"]
    dated = "".join(f".replace({code!r}, {today.strftime(code)!r})" for code in codes)
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{dated} }}}}{{%- endmacro -%}}{template}"
