"""Cleaning the text of a row, without changing what it says.

`Cleaner` takes the steps that are switched on, always in this order, and a text that it has cleaned
once it leaves as it is:

line_ends             CRLF, CR and the other characters that end a line become "\\n".
control_characters    The control characters that are left are removed; "\\n" and tabs stay.
invisible_characters  Every kind of space (no-break, thin, ideographic, ...) becomes " "; characters of no
                      width are removed (zero-width space, byte order mark, soft hyphen, direction marks).
                      Joiners stay where a reader would miss them: in scripts that join letters, in emoji.
unicode_nfc           Unicode's composed form, NFC (Unicode Standard Annex 15).
blanks                A run of spaces becomes one, blanks at the end of a line go, and of more than one
                      blank line one stays. Indentation, tabs between words and fenced code stay.
reference_marks       Wikipedia's `[12]`, `[note 3]`, `[citation needed]` go. See below for what is none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from howto.data.config import Clean

Step = Callable[[str], str]


class Cleaner:
    """The steps of cleaning that `params` switches on."""

    def __init__(self, params: Clean) -> None:
        self._steps = [(name, step) for name, step in _STEPS if getattr(params, name)]
        self._marks = params.reference_marks

    def clean(self, text: str, *, marks: bool) -> tuple[str, tuple[str, ...]]:
        """`text` cleaned, and the names of the steps that changed it. Reference marks are looked for only if `marks`.

        Takes any string without lone surrogates, and cleans what it has cleaned to the same.
        """
        changed: list[str] = []
        for name, step in () if _is_plain(text) else self._steps:
            if (after := step(text)) != text:
                text = after
                if name not in changed:
                    changed.append(name)
        if marks and self._marks and "[" in text and (after := _without_marks(text)) != text:
            text = after
            changed.append("reference_marks")
        return text, tuple(changed)


def _is_plain(text: str) -> bool:
    """Whether none of the steps before the last would change the text: so it is with most, and quickly seen."""
    return (
        text.isascii()
        and text.replace("\n", "").isprintable()
        and not ("  " in text or " \n" in text or "\n\n\n" in text)
        and text == text.strip(" \n")
    )


# --- Characters ---------------------------------------------------------------------------------------

LINE_END = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# Format characters (Cf) that only steer how a text is laid out. Not among them: the joiners, the tags
# (both below), and those that are seen or read, such as Arabic number signs.
INVISIBLE = re.compile(
    "[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
    # Tags spell the flag of a region behind a black flag; anywhere else they are text that nobody sees.
    "|(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)|[\U000e0000-\U000e007f]"
)
SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")  # category Zs but " "
NON_JOINER, JOINER = "\u200c", "\u200d"


def _line_ends(text: str) -> str:
    if text.isascii() and not ("\r" in text or "\v" in text or "\f" in text):
        return text
    return LINE_END.sub("\n", text)


def _control_characters(text: str) -> str:
    # str.isprintable is an order of magnitude faster than a search; no control character is printable.
    return text if text.replace("\n", "").isprintable() else CONTROL.sub("", text)


def _invisible_characters(text: str) -> str:
    if text.isascii() or text.replace("\n", "").isprintable():
        return text
    return SPACE.sub(" ", INVISIBLE.sub(lambda match: match[1] or "", text))


def _nfc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _needless_joiners(text: str) -> str:
    """Zero-width joiners and non-joiners go, but for those with a letter that joins, or an emoji, on both sides.

    Marks (vowel signs, viramas, variation selectors) belong to what they stand behind. This is wider than what
    identifiers may hold (Unicode Standard Annex 31, 2.3): it keeps a few that a reader would not miss.
    """
    if text.isascii() or (NON_JOINER not in text and JOINER not in text):
        return text
    kept = []
    letter = emoji = False  # what the last character was that is neither a mark nor a joiner
    for character, after in zip(text, text[1:] + " ", strict=True):
        if character in (NON_JOINER, JOINER):
            if (letter and (_joins(after) or _is_mark(after))) or (character == JOINER and emoji and _is_emoji(after)):
                kept.append(character)
            continue
        kept.append(character)
        if not _is_mark(character):
            letter, emoji = _joins(character), _is_emoji(character)
    return "".join(kept)


def _is_mark(character: str) -> bool:
    return character in _marks()


@cache
def _marks() -> frozenset[str]:
    """All characters that are marks, category M: they stand in these two ranges."""
    ranges = (range(0x300, 0x20000), range(0xE0100, 0xE01F0))
    return frozenset(c for part in ranges for c in map(chr, part) if unicodedata.category(c)[0] == "M")


def _joins(character: str) -> bool:
    """Whether this is a letter of a script in which a joiner changes what is seen: Arabic to Sinhala, Khmer, ..."""
    return (
        "\u0600" <= character <= "\u0dff"
        or "\u1000" <= character <= "\u109f"
        or "\u1780" <= character <= "\u18af"
        or "\ufb50" <= character <= "\ufefc"
        or "\U00011000" <= character <= "\U00011fff"
    ) and unicodedata.category(character)[0] == "L"


def _is_emoji(character: str) -> bool:
    """Whether this is in a block with emoji that can be joined to another: arrows, signs, pictures."""
    return (
        "\u2190" <= character <= "\u21ff"
        or "\u2600" <= character <= "\u27bf"
        or "\u2b00" <= character <= "\u2bff"
        or "\U0001f000" <= character <= "\U0001faff"
    )


# --- Blanks -------------------------------------------------------------------------------------------

# A block of code in Markdown, up to the end of the text if its fence is not closed (CommonMark 0.31, 4.5,
# but indented as one likes). A line such as ```x``` opens none.
FENCED = re.compile(
    r"^[ \t]*(?P<fence>`{3,}(?=[^`\n]*$)|~{3,}).*?(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
TABS = re.compile("(?<![ \t])[ \t]*\t[ \t]*")  # the look-behind keeps a long run from being tried at each place
SPACES = re.compile("  +")
BLANK_LINES = re.compile("\n{3,}")
LINE_STARTS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def _blanks(text: str) -> str:
    text = text.strip(" \t\n")
    if "  " in text or "\t" in text or " \n" in text or "\n\n\n" in text:
        return _outside_fences(_blanks_of_prose, text)
    return text


def _blanks_of_prose(text: str) -> str:
    if "\t" in text:  # parts the columns of a table, so a run keeps its tabs
        text = TABS.sub(lambda run: run[0] if _is_indentation(run) else "\t" * run[0].count("\t"), text)
    if "  " in text:
        text = SPACES.sub(lambda run: run[0] if _is_indentation(run) else " ", text)
    if " \n" in text or "\t\n" in text:
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return BLANK_LINES.sub("\n\n", text)


def _is_indentation(run: re.Match[str]) -> bool:
    # Behind a tab there are spaces only in indentation: `TABS` has taken the others.
    return run.string[run.start() - 1 : run.start()] in ("", "\t", *LINE_STARTS)


def _outside_fences(step: Step, text: str) -> str:
    if "```" not in text and "~~~" not in text:
        return step(text)
    parts, end = [], 0
    for block in FENCED.finditer(text):
        parts += [step(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, step(text[end:])])


_STEPS: list[tuple[str, Step]] = [
    ("line_ends", _line_ends),
    ("control_characters", _control_characters),
    ("invisible_characters", _invisible_characters),
    ("unicode_nfc", _nfc),
    # Whether a joiner is needed is asked of composed text, and what stood on both sides of it may then compose.
    ("invisible_characters", _needless_joiners),
    ("unicode_nfc", _nfc),
    ("blanks", _blanks),
]


# --- Reference marks ----------------------------------------------------------------------------------
#
# Wikipedia sets its marks right behind what they belong to, without a space. So a bracket behind a space or
# at the start of a line is none: an interval `[3, 4]`, a value, `[sic]`, a footnote's own `[1]: ...`. Nor is
# `[0]`, `[2019]`, `[text](address)`, or anything in code, be it fenced, in backticks or a line of its own.
#
# Behind the end of a sentence or a comma it is a mark. Behind a word it may also be an index, as in
# "items[3] is the fourth", and so it stays if the text has code anywhere, or if the word is a letter or
# written like a name in code. If the word is one that programmers like, or the text speaks of arrays and
# the like, it goes only if the text has a mark behind a sentence too: then it comes from Wikipedia.

_NUMBER = "[1-9][0-9]{0,2}"
_GROUP = "(?:[Nn]otes?|nb|NB|[Ff]n|[Ff]ootnote|[Ww]eb|(?:lower|upper)-(?:alpha|roman)|[A-Z][a-z]?|n)"
_DISCUSS = r"(?: [\u2013-] discuss)"
_TAG = (
    rf"(?:[a-z][a-z -]{{2,40}} needed|(?:[a-z]+ ){{0,3}}[a-z]+\?{_DISCUSS}?|(?:dubious|disputed){_DISCUSS}"
    "|failed verification|not in citation given|not verified in body|(?:permanent )?dead link|neutrality is disputed)"
)
_INSIDE = rf"(?:{_NUMBER}|{_GROUP}[ \u00a0]{_NUMBER}|{_TAG}|[a-z])\]"
_RUN = rf"{_INSIDE}(?:,? ?\[{_INSIDE})*)"
_PAGES = r"(?::[ \u00a0\u2009\u200a]?[0-9]+(?:[\u2013-][0-9]+)?(?=[\s.,;)\[]|$))?"  # `[12]:34`, a page of source 12
_STOP = r".,;!?\u2026\u3002\uff0c\uff1b\uff01\uff1f"  # with the full-width ones
_CLOSING = r"\"')\u201d\u2019\u00bb"
_DASH = r"\u2013\u2014"
# The bracket stands in front of what is looked for behind it: a search for a literal is by far the faster one.
BEHIND_SENTENCE = re.compile(
    rf"(?P<run>\[(?:(?<=[^\s\[({{=][{_STOP}]\[)|(?<=\w[{_STOP}][{_CLOSING}]\[)){_RUN}{_PAGES}"
    rf"(?=(?P<after>[\s{_STOP}:{_CLOSING}{_DASH}-]|[^\W\d_]|$))"
)
BEHIND_WORD = re.compile(
    rf"(?P<run>\[(?<=[\w{_CLOSING}/%\u00b0:]\[){_RUN}{_PAGES}"
    rf"(?=[{_STOP}:{_CLOSING}]*(?:\s|$|\[{_INSIDE})|[{_DASH}])(?!\s*[=+*/<>|&%])"
)
CUT_OFF = re.compile(r"(?<=\w[.,;!?])\[[0-9]{0,3}\Z")  # what is left of a mark where a context was cut

CODE_LINE = re.compile(
    r"^[ \t]*(?:>>> |#include|(?:def|function|class|struct) \w+ ?[({:]|from \w+ import |import [\w.]+;?$"
    r"|(?:for|while|if) ?\(|(?:for|if|elif|while|else|try|with)\b[^.\n]*:$"
    r"|(?:let|var|const|int|float|double|char|auto|String) [\w*]+ ?[=;\[(]"
    r"|[A-Za-z_][\w.]*(?:\[[^\]\n]*\])* ?[-+*/]?=(?!=))|[)\]];$|\{$",
    re.MULTILINE,
)
CODE = re.compile(
    r"`|~~~|==|!=|\+=|:=|=>|->|&&|\]\s?=|\b[A-Za-z]\w*\(\)"
    r"|(?<!/)\b[a-z]+_[a-z]\w*"  # snake_case, but for the end of an address
    r"|\b[a-z_]\w*\((?!(?:e?s|[IVX]+)\))[^()\s]+\)"  # a call, but no word(s) and no iron(III)
    r"|[\w)\]]\[(?:0|-?[0-9]*:-?[0-9]*|-[0-9]+|[a-z_]\w* ?[-+*] ?\w+|[ijk]|\"[^\"\n]*\"|'[^'\n]*')\]"  # an index
)
CODE_NAME = re.compile(r"[A-Za-z]|.*[_$].*")
LIKE_A_NAME = re.compile(
    r"[a-z]+[0-9]+|[a-z]+[A-Z]\w*|.*[a-z]\w*\.[a-z]\w*"
    r"|args?|argv|arr(?:ay)?s?|board|buffer|cells?|cols?|columns?|data|dict|elements?|grid|images?|items|keys|letters"
    r"|lines|lists?|lst|matri(?:x|ces)|names|nums?|numbers|pixels?|queue|results?|rows?|stack|str(?:ing)?s?|tables?"
    r"|tokens?|tuples?|vals?|values?|vec(?:tor)?s?|words"
)
SPEAKS_OF_CODE = re.compile(
    r"\b(?:arrays?|ind(?:ex(?:e[sd]|ing)?|ices)|subscripts?|tuples?|pointers?|substrings?|variables?|Python|JavaScript"
    r"|TypeScript|NumPy|pandas|C\+\+|C#|Java|bash|zero-based)(?!\w)"
)
LAST_WORD = re.compile(r"[\w.$]+$")
LETTERS = re.compile(r"(?:\[[a-z]\])+")
IN_BACKTICKS = re.compile("(`[^`]+`)")
TO_CLOSING = re.compile(r"[^\[\]]*\]")


def _without_marks(text: str) -> str:
    # Without one mark another may be seen to be one: in `it;[1]"[2]` the second then stands behind a word.
    while (after := _without_marks_once(text)) != text:
        text = after
    return text


def _without_marks_once(text: str) -> str:
    after = _outside_fences(_without_marks_behind_sentences, CUT_OFF.sub("", text))
    if BEHIND_WORD.search(after) and not (CODE.search(after) or CODE_LINE.search(after)):
        from_wikipedia = after != text
        if from_wikipedia or not SPEAKS_OF_CODE.search(after):
            return BEHIND_WORD.sub(lambda run: run[0] if _is_index(run, from_wikipedia) else "", after)
    return after


def _without_marks_behind_sentences(text: str) -> str:
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if "[" in line and not CODE_LINE.search(line):
            parts = IN_BACKTICKS.split(line)
            parts[::2] = [BEHIND_SENTENCE.sub(_nothing_or_a_space, part) for part in parts[::2]]
            lines[number] = "".join(parts)
    return "\n".join(lines)


def _nothing_or_a_space(run: re.Match[str]) -> str:
    """What takes the place of marks behind a sentence: a space if the next sentence follows at once."""
    behind = run.string[run.start() - 1]
    if _is_in_brackets(run) or (behind in ",;" and run["after"] in (")", ",", ";", ":")):  # f(1,[2])
        return run[0]
    return " " if run["after"].isalpha() else ""


def _is_index(run: re.Match[str], from_wikipedia: bool) -> bool:
    """Whether what stands in brackets right behind a word may be an index, or letters that an editor put in."""
    if _is_in_brackets(run):
        return True
    before = run.string[max(0, run.start() - 40) : run.start()]
    if LETTERS.fullmatch(run["run"]):  # a date may have a note, `1743[a]`; `king[s]` and `1990[s]` have none
        return not (before[-1].isdigit() and run["run"] <= "[f]")
    word = LAST_WORD.search(before)
    return word is not None and bool(
        CODE_NAME.fullmatch(word[0]) or (not from_wikipedia and LIKE_A_NAME.fullmatch(word[0]))
    )


def _is_in_brackets(run: re.Match[str]) -> bool:
    """Whether marks stand inside another bracket, as they do not; and without them it might become a mark itself."""
    text, start = run.string, run.start()
    return text.rfind("[", 0, start) > text.rfind("]", 0, start) and TO_CLOSING.match(text, run.end()) is not None


# --- Comparing ----------------------------------------------------------------------------------------

# A share of the longer text. On Dolly any share from 0.66 to 0.98 finds the same rows: answers that a reader took
# from their context are short, and all others that were copied are copied whole.
WHOLE = 0.9
# For text in ASCII: each byte that is in no word becomes a space.
_ASCII_WORDS = bytes(byte if chr(byte).isalnum() or chr(byte) == "_" else 0x20 for byte in range(128)) + bytes(128)


def normal_key(text: str) -> str:
    """What two texts have in common when they differ only in case, punctuation, accents' encoding and white space.

    A text without a word, such as "???" or an emoji, is its own key, but for white space.
    """
    if text.isascii():
        return _words(text.lower())
    # Folding the case may take a text out of NFKC.
    return _words(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))


def repeats(response: str, context: str) -> bool:
    """Whether a response is its context, or nearly: the words of one are a piece of the other's, and 90 % of it.

    Case counts and punctuation does not. A short verbatim piece of the context is how many questions are rightly
    answered, and a context without its typing errors, or in capitals, is an answer too. A text that has three times
    the characters of the other is not compared: it would have to be nearly all punctuation.
    """
    if not response or not context or not len(context) / 3 <= len(response) <= 3 * len(context):
        return False
    short, long = sorted((_words(unicodedata.normalize("NFKC", text)) for text in (response, context)), key=len)
    return len(short) >= WHOLE * len(long) and f" {short} " in f" {long} "


def _words(text: str) -> str:
    """The words of a text with single spaces between; of a text without any, all but its white space."""
    if text.isascii():
        words = text.encode().translate(_ASCII_WORDS).decode().split()
    else:
        # `\w` is no mark, such as a vowel sign in Hindi or a point in Hebrew: by itself it would end words at each.
        characters = set(text)
        if not characters.isdisjoint(_marks()):
            gaps = {ord(character): " " for character in characters if not _is_in_words(character)}
            words = text.translate(gaps).split()
        else:
            words = re.findall(r"\w+", text)
    return " ".join(words) or "".join(text.split())


def _is_in_words(character: str) -> bool:
    """Variation selectors are marks too, but say how a character looks, not what it is."""
    return character.isalnum() or character == "_" or (_is_mark(character) and not "\ufe00" <= character <= "\ufe0f")
