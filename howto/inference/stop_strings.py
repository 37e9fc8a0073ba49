"""Stop strings, found without decoding the whole answer after each token."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\ufffd"  # a tokenizer decodes the first bytes of a character to this
EXTRA_TOKENS = 4  # the first decoded token may lose its leading space


class StopStrings:
    """Strings that end an answer, looked for in its last tokens.

    A string that the answer did not contain before its newest token ends in that token. A token with text has at least
    one byte. So the string begins within as many of these tokens as it has bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        self._tokenizer, self._strings = tokenizer, strings
        self._has_text = cache(lambda token: bool(self._decode([token])))  # special tokens and unused ids have none
        longest = max((len(string.encode(errors="surrogatepass")) for string in strings), default=0)
        # Clean-up, and bytes that form no character, may change text long before the newest token.
        is_nonlocal = tokenizer.clean_up_tokenization_spaces or any(INCOMPLETE in string for string in strings)
        self._window = sys.maxsize if is_nonlocal else longest + EXTRA_TOKENS

    def cut(self, tokens: list[int], starts: list[int]) -> str | None:
        """Return the text of an answer before the first stop string, or None if it contains none.

        Call it after each token. `starts` is [0] before the first one. For each token with text, it gets the index of
        the next token that begins a character.
        """
        if not self._strings:
            return None
        text = self._decode(tokens[starts[-self._window :][0] :])
        if self._has_text(tokens[-1]):
            starts.append(starts[-1] if text.endswith(INCOMPLETE) else len(tokens))
        if not any(string in text for string in self._strings):
            return None
        text = self._decode(tokens)
        found = [index for index in map(text.find, self._strings) if index >= 0]
        return text[: min(found)] if found else None

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
