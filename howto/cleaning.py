"""Cleaning the text of a row, without changing what it says."""

from __future__ import annotations

import re
import unicodedata

ZERO_WIDTH = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))
# Wikipedia's reference marks: digits in brackets right behind a word or its punctuation, with a space, another
# mark or the end of the text after them. `items[0]` in code, `[3, 4]` and `(a[1])` are none.
MARK = re.compile(r"(?<=[\w.,;:!?\"')\]])\[\d{1,3}\](?=\s|\[\d|$)")


def clean(text: str, *, marks: bool) -> str:
    """`text` in Unicode's composed form (NFC), with plain spaces and line ends, no runs of blanks, no zero-width
    characters and, where `marks`, without Wikipedia's `[12]`."""
    text = unicodedata.normalize("NFC", text).translate(ZERO_WIDTH)
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    if marks:
        text = MARK.sub("", text)
    text = re.sub(r"(?<=\S)[ \t]+", " ", text)  # indentation at the start of a line stays
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def normal_key(text: str) -> str:
    """What two texts have in common when they differ only in case, punctuation, accents' encoding and white space."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
