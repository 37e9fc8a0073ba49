"""The strings that end an answer, found without decoding the whole answer after each token."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INCOMPLETE = "\ufffd"  # what a tokenizer decodes the first bytes of a character to
SLACK = 4  # tokens; the first one that is decoded may lose its leading space


class StopStrings:
    """Strings that end an answer, looked for in its last tokens.

    If the answer held no such string before its newest token, one that it holds now ends in that token. A token that
    has text has a byte at least. So the string begins within as many of these tokens as it has bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]) -> None:
        """`tokenizer` decodes the answers."""
        self._tokenizer, self._strings = tokenizer, strings
        self._has_text: dict[int, bool] = {}
        longest = max((len(string.encode(errors="surrogatepass")) for string in strings), default=0)
        # Clean-up, and bytes that are no character, may change text far before the newest token.
        odd = strings and (tokenizer.clean_up_tokenization_spaces or any(INCOMPLETE in string for string in strings))
        self._window = sys.maxsize if odd else longest + SLACK

    def cut(self, tokens: list[int], starts: list[int]) -> str | None:
        """Return the text of an answer before the first of the strings; None if it holds none.

        Call it after each token. `starts` is [0] before the first one; it gets, for each token that has text, the
        place of the next token at which a character begins.
        """
        if not self._strings:
            return None
        text = self._decode(tokens[starts[-self._window :][0] :])
        if self._is_text(tokens[-1]):
            starts.append(starts[-1] if text.endswith(INCOMPLETE) else len(tokens))
        if not any(string in text for string in self._strings):
            return None
        text = self._decode(tokens)
        found = [place for place in map(text.find, self._strings) if place >= 0]
        return text[: min(found)] if found else None

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _is_text(self, token: int) -> bool:
        """Return whether the token has text by itself: a special token and an unused number have none."""
        if token not in self._has_text:
            self._has_text[token] = bool(self._decode([token]))
        return self._has_text[token]
