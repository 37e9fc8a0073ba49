"""Split texts into the words that scores count."""

import re
import unicodedata
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

from unicode_segmentation_rs import unicode_words

from howto.evaluation.config import TokenizerName


class Tokenizer(NamedTuple):
    """`fold` makes texts with the same words equal, `words` finds the words in a line of a folded text."""

    fold: Callable[[str], str]
    words: Callable[[str], list[str]]

    def words_of(self, text: str) -> list[str]:
        """Return all words of a text."""
        return list(chain.from_iterable(map(self.words, self.fold(text).split("\n"))))


# Both apostrophes are one. Soft hyphens, joiners, variation selectors and the frame of a keycap change only the look.
_LOOK = str.maketrans({"\u2019": "'"} | dict.fromkeys("\u00ad\u200c\u200d\u20e3\ufe0e\ufe0f", ""))
_KATAKANA = re.compile("[\u30a0-\u30ff\u31f0-\u31ff]")
_CHARACTER = re.compile(".[\u3099\u309a]?")  # with a voicing mark that has no composed form


def _fold(text: str) -> str:
    """Return the text in folded case and in Unicode's compatibility form, so that "Ａ", "A" and "a" are equal."""
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_LOOK)
    return unicodedata.normalize("NFKC", folded)  # case folding may leave NFKC


def _unicode_words(line: str) -> list[str]:
    """Return the words between Unicode's default word boundaries (UAX 29) that have a letter or a digit.

    Scripts that write no spaces give characters with their marks: Han, Hiragana, Thai, Lao, Khmer, Myanmar by UAX 29
    itself, and Katakana, of which UAX 29 keeps runs, by this function.
    """
    words: list[str] = unicode_words(line)
    if not _KATAKANA.search(line):
        return words
    return [part for word in words for part in (_CHARACTER.findall(word) if _KATAKANA.match(word) else [word])]


TOKENIZERS: dict[TokenizerName, Tokenizer] = {
    # As in ROUGE-1.5.5: in lower case, any character but these separates words.
    "rouge_score": Tokenizer(str.lower, re.compile("[a-z0-9]+").findall),
    "unicode": Tokenizer(_fold, _unicode_words),
}
