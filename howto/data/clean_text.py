"""Clean the text of a row without changing what it says, and compare texts by their words.

`Cleaner` applies the steps that are switched on, in the order of `Clean`; params.yaml says what each does. A text that
has been cleaned is not changed by cleaning it again.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import cache, partial

from howto.data.config import Clean
from howto.data.reference_marks import outside_fences, without_marks


class Cleaner:
    """The cleaning steps that `params` switches on."""

    def __init__(self, params: Clean) -> None:
        self._steps = [(name, step) for name, step in _STEPS if getattr(params, name)]
        self._marks = params.reference_marks

    def clean(self, text: str, *, marks: bool) -> tuple[str, tuple[str, ...]]:
        """Return the cleaned text, and the names of the steps that changed it.

        `text` must have no lone surrogates. Reference marks are removed only if `marks` is true.
        """
        changed: list[str] = []
        for name, step in () if _is_plain(text) else self._steps:
            if (after := step(text)) != text:
                text = after
                if name not in changed:
                    changed.append(name)
        if marks and self._marks and "[" in text and (after := without_marks(text)) != text:
            text = after
            changed.append("reference_marks")
        return text, tuple(changed)


def _is_plain(text: str) -> bool:
    """Return whether no step but the last can change the text. This check is fast, and true of most texts."""
    return (
        text.isascii()
        and text.replace("\n", "").isprintable()
        and not ("  " in text or " \n" in text or "\n\n\n" in text)
        and text == text.strip(" \n")
    )


# --- Characters ---------------------------------------------------------------------------------------

LINE_END = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# Format characters (category Cf) that only control the layout. Joiners are not listed: they have a step of their own.
INVISIBLE = re.compile(
    "[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
    # Tag characters after a black flag spell the flag of a region; anywhere else they are hidden text.
    "|(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)|[\U000e0000-\U000e007f]"
)
SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")  # category Zs without " "
NON_JOINER, JOINER = "\u200c", "\u200d"
# Blocks of scripts with visible joiners (Arabic to Sinhala, Khmer, ...), and blocks with emoji that can be joined.
JOINING = re.compile("[\u0600-\u0dff\u1000-\u109f\u1780-\u18af\ufb50-\ufefc\U00011000-\U00011fff]")
EMOJI = re.compile("[\u2190-\u21ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]")


def _control_characters(text: str) -> str:
    # str.isprintable is an order of magnitude faster than a search, and no control character is printable.
    return text if text.replace("\n", "").isprintable() else CONTROL.sub("", text)


def _invisible_characters(text: str) -> str:
    if text.isascii() or text.replace("\n", "").isprintable():
        return text
    return SPACE.sub(" ", INVISIBLE.sub(lambda match: match[1] or "", text))


def _needless_joiners(text: str) -> str:
    """Remove each joiner and non-joiner unless it has a letter of a joining script, or an emoji, on both sides.

    Marks (vowel signs, viramas, variation selectors) count as part of the character before them. The rule is wider than
    that for identifiers (Unicode Standard Annex 31, 2.3).
    """
    if text.isascii() or (NON_JOINER not in text and JOINER not in text):
        return text
    kept, marks = [], _marks()
    letter = emoji = False  # what the last character was that is neither a mark nor a joiner
    for character, after in zip(text, text[1:] + " ", strict=True):
        if character in (NON_JOINER, JOINER):
            if (letter and (_joins(after) or after in marks)) or (character == JOINER and emoji and EMOJI.match(after)):
                kept.append(character)
            continue
        kept.append(character)
        if character not in marks:
            letter, emoji = _joins(character), EMOJI.match(character) is not None
    return "".join(kept)


@cache
def _marks() -> frozenset[str]:
    """Return all characters of category M (marks); they are in these two ranges."""
    ranges = (range(0x300, 0x20000), range(0xE0100, 0xE01F0))
    return frozenset(c for part in ranges for c in map(chr, part) if unicodedata.category(c)[0] == "M")


def _joins(character: str) -> bool:
    return JOINING.match(character) is not None and unicodedata.category(character)[0] == "L"


# --- Blanks -------------------------------------------------------------------------------------------

TABS = re.compile("(?<![ \t])[ \t]*\t[ \t]*")  # the look-behind avoids a new try at each place of a long run
SPACES = re.compile("  +")
BLANK_LINES = re.compile("\n{3,}")
LINE_STARTS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def _blanks(text: str) -> str:
    text = text.strip(" \t\n")
    if "  " in text or "\t" in text or " \n" in text or "\n\n\n" in text:
        return outside_fences(_blanks_of_prose, text)
    return text


def _blanks_of_prose(text: str) -> str:
    if "\t" in text:  # tabs separate the columns of a table, so a run keeps its tabs
        text = TABS.sub(lambda run: run[0] if _is_indentation(run) else "\t" * run[0].count("\t"), text)
    if "  " in text:
        text = SPACES.sub(lambda run: run[0] if _is_indentation(run) else " ", text)
    if " \n" in text or "\t\n" in text:
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return BLANK_LINES.sub("\n\n", text)


def _is_indentation(run: re.Match[str]) -> bool:
    # Spaces after a tab are indentation: `TABS` has removed all others.
    return run.string[run.start() - 1 : run.start()] in ("", "\t", *LINE_STARTS)


_STEPS: list[tuple[str, Callable[[str], str]]] = [
    ("line_ends", partial(LINE_END.sub, "\n")),
    ("control_characters", _control_characters),
    ("invisible_characters", _invisible_characters),
    ("unicode_nfc", partial(unicodedata.normalize, "NFC")),
    # Joiners are judged in composed text; once one is removed, its neighbours may compose.
    ("invisible_characters", _needless_joiners),
    ("unicode_nfc", partial(unicodedata.normalize, "NFC")),
    ("blanks", _blanks),
]


# --- Comparing ----------------------------------------------------------------------------------------

NEARLY_ALL = 0.9  # of the longer text; on Dolly, every share from 0.66 to 0.98 finds the same rows
VARIATION_SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
# For ASCII text: each byte outside a word becomes a space.
_ASCII_WORDS = bytes(byte if chr(byte).isalnum() or chr(byte) == "_" else 0x20 for byte in range(128)) + bytes(128)


def normal_key(text: str) -> str:
    """Return the words of a text: equal for texts that differ only in case, punctuation, white space or encoding.

    The key of a text without words, such as "???" or an emoji, is the text without its white space.
    """
    if text.isascii():
        return _words(text.lower())
    # Case folding may leave NFKC.
    return _words(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))


def repeats(response: str, context: str) -> bool:
    """Return whether the words of one text are a piece of the other's, and at least 90 % of it.

    Case counts, punctuation does not: a short piece of the context, or the context in capitals, can be a right answer.
    If one text has three times the characters of the other, they are not compared.
    """
    if not response or not context or not len(context) / 3 <= len(response) <= 3 * len(context):
        return False
    short, long = sorted((_words(unicodedata.normalize("NFKC", text)) for text in (response, context)), key=len)
    return len(short) >= NEARLY_ALL * len(long) and f" {short} " in f" {long} "


def _words(text: str) -> str:
    """Return the words of a text with single spaces between them; without words, all but its white space."""
    if text.isascii():
        words = text.encode().translate(_ASCII_WORDS).decode().split()
    elif _marks().isdisjoint(set(text)):
        words = re.findall(r"\w+", text)
    else:  # marks, such as vowel signs in Hindi, are in words, except variation selectors: they change only the look
        marks = _marks() & set(text) - VARIATION_SELECTORS
        words = "".join(c if c.isalnum() or c == "_" or c in marks else " " for c in text).split()
    return " ".join(words) or "".join(text.split())
