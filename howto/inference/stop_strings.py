"""Stop strings, found without decoding the whole answer after each token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\ufffd"  # a tokenizer decodes the first bytes of a character to this


class StopStrings:
    """Strings that end an answer.

    If an answer contains a string only since its newest token, that token has the string's last character. So most
    tokens end no string, and the answer is not decoded.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        self._tokenizer, self._strings = tokenizer, strings
        last_characters = {string[-1] for string in strings}
        # A token that is decoded by itself may lose a space, and clean-up changes text before the newest token.
        always = tokenizer.clean_up_tokenization_spaces or not last_characters.isdisjoint([" ", INCOMPLETE])
        last_characters.add(INCOMPLETE)
        self._may_end = cache(lambda token: always or not last_characters.isdisjoint(self._decode([token])))

    def cut(self, tokens: list[int]) -> str | None:
        """Return the text of an answer before the first stop string, or None if it contains none.

        Call it after each token.
        """
        if not self._strings or not self._may_end(tokens[-1]):
            return None
        text = self._decode(tokens)
        found = [index for index in map(text.find, self._strings) if index >= 0]
        return text[: min(found)] if found else None

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
