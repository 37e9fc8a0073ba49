"""Turn an intent into the tokens of a prompt, and an answer into those of a completion.

The base model's chat template makes the prompt. The fixed instruction is the system message, the intent (and its
context) the user message. Only the template can place a control token: `</s>` in a user's text is tokenised as four
characters.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import TYPE_CHECKING

from howto.core.schema import Row, input_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_ids(tokenizer: PreTrainedTokenizerBase, instruction: str, text: str) -> list[int]:
    """Return the token ids of the prompt for `text`, up to where the answer begins.

    For texts without control tokens these are the ids of `tokenizer.apply_chat_template`.
    """
    segments = _segments(tokenizer, instruction, text)
    return [token for number, segment in enumerate(segments) for token in _segment_ids(tokenizer, segment, number)]


def completion_ids(tokenizer: PreTrainedTokenizerBase, instruction: str, text: str, output: str) -> list[int]:
    """Return the token ids of the answer `output` to `text`, and the end of sequence.

    How a word is tokenised depends on what precedes it. So the answer is tokenised together with the end of the prompt,
    which is then taken off.
    """
    segments = _segments(tokenizer, instruction, text)
    last = len(segments) - 1
    before = _segment_ids(tokenizer, segments[-1], last)
    both = _segment_ids(tokenizer, segments[-1] + output, last)
    ids = both[len(before) :] if both[: len(before)] == before else _text_ids(tokenizer, output)
    return [*ids, tokenizer.eos_token_id]


def shorten_input(tokenizer: PreTrainedTokenizerBase, row: Row, limit: int) -> str | None:
    """Return the row's input with as many words of its context as fit into a prompt of `limit` tokens.

    Words are dropped from the end of the context. None if the prompt is too long without any context.
    """

    def fits(text: str) -> bool:
        return len(prompt_ids(tokenizer, row.instruction, text)) <= limit

    if fits(row.input):
        return row.input
    if not fits(row.intent):
        return None
    words = row.context.split(" ")

    def first_words(count: int) -> str:
        return input_of(row.intent, " ".join(words[:count]))

    return first_words(bisect_left(range(1, len(words)), True, key=lambda count: not fits(first_words(count))))


def _segments(tokenizer: PreTrainedTokenizerBase, instruction: str, text: str) -> list[str]:
    """Return the rendered prompt, split at the template's control tokens: text, control, text, ..., text."""
    controls = "|".join(re.escape(str(token)) for token in tokenizer.added_tokens_decoder.values())
    # A character that is in neither text breaks up what looks like a control token, and is removed afterwards.
    guard = next(character for character in map(chr, range(0xFDD0, 0x10FFFF)) if character not in instruction + text)

    def message(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": re.sub(controls, lambda match: match[0][0] + guard + match[0][1:], content)}

    messages = [message("system", instruction), message("user", text)]
    rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return [part.replace(guard, "") for part in re.split(f"({controls})", rendered)]


def _segment_ids(tokenizer: PreTrainedTokenizerBase, segment: str, number: int) -> list[int]:
    """Return the token ids that segment `number` has when the whole prompt is encoded at once."""
    if number % 2:
        return [int(tokenizer.convert_tokens_to_ids(segment))]
    after_control = list(tokenizer(f"{tokenizer.eos_token}a", add_special_tokens=False).input_ids)[1:]
    if number == 0 or not segment or after_control == _text_ids(tokenizer, "a"):
        return _text_ids(tokenizer, segment)
    # SentencePiece puts a space before the first word of a text, but not after a control token.
    newline = _text_ids(tokenizer, "\n")
    return _text_ids(tokenizer, "\n" + segment)[len(newline) :]


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of `text`, with control tokens taken as plain text."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)
