"""The one way in which an intent becomes the tokens of a prompt, and an answer those of a completion.

The base model's own chat template makes the prompt: the fixed instruction is the system message, the
intent (and its context) the user's. Only the template can place a control token: `</s>` in a text
that somebody wrote is tokenised as the four characters that it is.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING

from howto.core.errors import UserError
from howto.core.schema import Row, input_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GUARDS = [chr(code) for code in range(0xFDD0, 0xFDF0)]  # noncharacters: they have no place in what is interchanged


def prompt_ids(tokenizer: PreTrainedTokenizerBase, instruction: str, text: str) -> list[int]:
    """Token ids of the prompt that asks for `text` and ends where the answer begins.

    For texts without control tokens these are the ids of `tokenizer.apply_chat_template`.

    Raises:
        UserError: the tokenizer has no chat template.
    """
    segments = _segments(tokenizer, instruction, text)
    return [token for number, segment in enumerate(segments) for token in _encode(tokenizer, segment, number)]


def completion_ids(tokenizer: PreTrainedTokenizerBase, instruction: str, text: str, output: str) -> list[int]:
    """Token ids of the answer `output` to `text`, in their place behind the prompt, and the end of sequence.

    A word is tokenised by what stands before it, so the answer is tokenised together with the end of
    the prompt, and that end is then taken off.
    """
    segments = _segments(tokenizer, instruction, text)
    last = len(segments) - 1
    before = _encode(tokenizer, segments[-1], last)
    both = _encode(tokenizer, segments[-1] + output, last)
    ids = both[len(before) :] if both[: len(before)] == before else _text_ids(tokenizer, output)
    return [*ids, tokenizer.eos_token_id]


def fitting_input(tokenizer: PreTrainedTokenizerBase, row: Row, limit: int) -> str | None:
    """The row's input, with as many whole words of its context, from the front, as a prompt of `limit` tokens holds.

    None if the prompt is too long without any context.
    """

    def fits(text: str) -> bool:
        return len(prompt_ids(tokenizer, row.instruction, text)) <= limit

    if fits(row.input):
        return row.input
    if not fits(row.intent):
        return None
    words = row.context.split(" ")

    def begun(count: int) -> str:
        return input_of(row.intent, " ".join(words[:count]))

    return begun(bisect_left(range(1, len(words)), True, key=lambda n: not fits(begun(n))))


def _segments(tokenizer: PreTrainedTokenizerBase, instruction: str, text: str) -> list[str]:
    """The rendered prompt, cut at the control tokens that the template placed: text, control, text, ..., text."""
    if not tokenizer.chat_template:
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; take a chat model as the base")
    controls = "|".join(re.escape(str(token)) for token in tokenizer.added_tokens_decoder.values())
    guard = next((character for character in GUARDS if character not in instruction + text), None)
    if guard is None:
        raise UserError("a text holds all 32 noncharacters from U+FDD0 on; remove them")

    def guarded(content: str) -> str:
        return re.sub(controls, lambda match: match[0][0] + guard + match[0][1:], content)

    messages = [{"role": "system", "content": guarded(instruction)}, {"role": "user", "content": guarded(text)}]
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return [part.replace(guard, "") for part in re.split(f"({controls})", rendered)]


def _encode(tokenizer: PreTrainedTokenizerBase, segment: str, number: int) -> list[int]:
    """Token ids of segment `number` of a rendered prompt: those that the whole, encoded at once, has there."""
    if number % 2:
        return [int(tokenizer.convert_tokens_to_ids(segment))]
    control = str(tokenizer.eos_token)
    like_a_beginning = list(tokenizer(control + "a", add_special_tokens=False).input_ids)[1:] == _text_ids(
        tokenizer, "a"
    )
    if number == 0 or like_a_beginning or not segment:
        return _text_ids(tokenizer, segment)
    # SentencePiece puts a space before the first word of a text, but not before one behind a control token.
    lead = _text_ids(tokenizer, "\n")
    return _text_ids(tokenizer, "\n" + segment)[len(lead) :]


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of `text` alone, whatever it spells."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
