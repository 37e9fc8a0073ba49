"""Remove Wikipedia's reference marks: `[12]`, `[note 3]`, `[citation needed]`.

Wikipedia writes a mark directly after the text it belongs to, without a space. So a bracket after a space or at the
start of a line is no mark: an interval `[3, 4]`, a value, `[sic]`, a footnote's own `[1]: ...`. No marks either are
`[0]`, `[2019]`, `[text](address)`, and anything in code: fenced, in backticks, or a line of its own.

After a comma or the end of a sentence, a bracket is a mark. After a word it may also be an index: "items[3] is last".
It stays if the text has code anywhere, or if the word is a letter or is written like a name in code. If the word is
common in code, or the text is about arrays and the like, it is removed only if a sentence of the text ends with a mark,
because then the text is from Wikipedia.
"""

import re
from collections.abc import Callable

# A block of code in Markdown; without a closing fence it reaches to the end of the text (CommonMark 0.31, 4.5, but with
# any indentation). A line such as ```x``` opens no block.
FENCED = re.compile(
    r"^[ \t]*(?P<fence>`{3,}(?=[^`\n]*$)|~{3,}).*?(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)

_NUMBER = "[1-9][0-9]{0,2}"
_GROUP = "(?:[Nn]otes?|nb|NB|[Ff]n|[Ff]ootnote|[Ww]eb|(?:lower|upper)-(?:alpha|roman)|[A-Z][a-z]?|n)"
_DISCUSS = r"(?: [\u2013-] discuss)"
_TAG = (
    rf"(?:[a-z][a-z -]{{2,40}} needed|(?:[a-z]+ ){{0,3}}[a-z]+\?{_DISCUSS}?|(?:dubious|disputed){_DISCUSS}"
    "|failed verification|not in citation given|not verified in body|(?:permanent )?dead link|neutrality is disputed)"
)
_INSIDE = rf"(?:{_NUMBER}|{_GROUP}[ \u00a0]{_NUMBER}|{_TAG}|[a-z])\]"
_RUN = rf"{_INSIDE}(?:,? ?\[{_INSIDE})*)"
_PAGES = r"(?::[ \u00a0\u2009\u200a]?[0-9]+(?:[\u2013-][0-9]+)?(?=[\s.,;)\[]|$))?"  # `[12]:34`, page 34 of source 12
_STOP = r".,;!?\u2026\u3002\uff0c\uff1b\uff01\uff1f"  # with the full-width ones
_CLOSING = r"\"')\u201d\u2019\u00bb"
_DASH = r"\u2013\u2014"
# The bracket is written before the look-behind, because the search for a literal is by far the faster one.
AFTER_SENTENCE = re.compile(
    rf"(?P<run>\[(?:(?<=[^\s\[({{=][{_STOP}]\[)|(?<=\w[{_STOP}][{_CLOSING}]\[)){_RUN}{_PAGES}"
    rf"(?=(?P<after>[\s{_STOP}:{_CLOSING}{_DASH}-]|[^\W\d_]|$))"
)
AFTER_WORD = re.compile(
    rf"(?P<run>\[(?<=[\w{_CLOSING}/%\u00b0:]\[){_RUN}{_PAGES}"
    rf"(?=[{_STOP}:{_CLOSING}]*(?:\s|$|\[{_INSIDE})|[{_DASH}])(?!\s*[=+*/<>|&%])"
)
CUT_OFF = re.compile(r"(?<=\w[.,;!?])\[[0-9]{0,3}\Z")  # the rest of a mark where a context was cut

CODE_LINE = re.compile(
    r"^[ \t]*(?:>>> |#include|(?:def|function|class|struct) \w+ ?[({:]|from \w+ import |import [\w.]+;?$"
    r"|(?:for|while|if) ?\(|(?:for|if|elif|while|else|try|with)\b[^.\n]*:$"
    r"|(?:let|var|const|int|float|double|char|auto|String) [\w*]+ ?[=;\[(]"
    r"|[A-Za-z_][\w.]*(?:\[[^\]\n]*\])* ?[-+*/]?=(?!=))|[)\]];$|\{$",
    re.MULTILINE,
)
CODE = re.compile(
    r"`|~~~|==|!=|\+=|:=|=>|->|&&|\]\s?=|\b[A-Za-z]\w*\(\)"
    r"|(?<!/)\b[a-z]+_[a-z]\w*"  # snake_case, unless it ends an address
    r"|\b[a-z_]\w*\((?!(?:e?s|[IVX]+)\))[^()\s]+\)"  # a call; word(s) and iron(III) are none
    r"|[\w)\]]\[(?:0|-?[0-9]*:-?[0-9]*|-[0-9]+|[a-z_]\w* ?[-+*] ?\w+|[ijk]|\"[^\"\n]*\"|'[^'\n]*')\]"  # an index
)
CODE_NAME = re.compile(r"[A-Za-z]|.*[_$].*")
COMMON_CODE_NAME = re.compile(
    r"[a-z]+[0-9]+|[a-z]+[A-Z]\w*|.*[a-z]\w*\.[a-z]\w*"
    r"|args?|argv|arr(?:ay)?s?|board|buffer|cells?|cols?|columns?|data|dict|elements?|grid|images?|items|keys|letters"
    r"|lines|lists?|lst|matri(?:x|ces)|names|nums?|numbers|pixels?|queue|results?|rows?|stack|str(?:ing)?s?|tables?"
    r"|tokens?|tuples?|vals?|values?|vec(?:tor)?s?|words"
)
ABOUT_CODE = re.compile(
    r"\b(?:arrays?|ind(?:ex(?:e[sd]|ing)?|ices)|subscripts?|tuples?|pointers?|substrings?|variables?|Python|JavaScript"
    r"|TypeScript|NumPy|pandas|C\+\+|C#|Java|bash|zero-based)(?!\w)"
)
LAST_WORD = re.compile(r"[\w.$]+$")
LETTERS = re.compile(r"(?:\[[a-z]\])+")
IN_BACKTICKS = re.compile("(`[^`]+`)")
TO_CLOSING = re.compile(r"[^\[\]]*\]")


def outside_fences(step: Callable[[str], str], text: str) -> str:
    """Return the text with `step` applied to each part that is not fenced code."""
    if "```" not in text and "~~~" not in text:
        return step(text)
    parts, end = [], 0
    for block in FENCED.finditer(text):
        parts += [step(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, step(text[end:])])


def without_marks(text: str) -> str:
    """Return the text without its reference marks."""
    # The removal of one mark can reveal another: in `it;[1]"[2]` the second one then follows a word.
    while (after := _without_marks_once(text)) != text:
        text = after
    return text


def _without_marks_once(text: str) -> str:
    after = outside_fences(_without_marks_after_sentences, CUT_OFF.sub("", text))
    if AFTER_WORD.search(after) and not (CODE.search(after) or CODE_LINE.search(after)):
        from_wikipedia = after != text
        if from_wikipedia or not ABOUT_CODE.search(after):
            return AFTER_WORD.sub(lambda run: run[0] if _is_index(run, from_wikipedia) else "", after)
    return after


def _without_marks_after_sentences(text: str) -> str:
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if "[" in line and not CODE_LINE.search(line):
            parts = IN_BACKTICKS.split(line)
            parts[::2] = [AFTER_SENTENCE.sub(_nothing_or_a_space, part) for part in parts[::2]]
            lines[number] = "".join(parts)
    return "\n".join(lines)


def _nothing_or_a_space(run: re.Match[str]) -> str:
    """Return what replaces marks after a sentence: a space if the next sentence follows directly."""
    before = run.string[run.start() - 1]
    if _is_in_brackets(run) or (before in ",;" and run["after"] in (")", ",", ";", ":")):  # f(1,[2])
        return run[0]
    return " " if run["after"].isalpha() else ""


def _is_index(run: re.Match[str], from_wikipedia: bool) -> bool:
    """Return whether brackets after a word may be an index, or letters that an editor inserted."""
    if _is_in_brackets(run):
        return True
    before = run.string[max(0, run.start() - 40) : run.start()]
    if LETTERS.fullmatch(run["run"]):  # a date may have a note, `1743[a]`; `king[s]` and `1990[s]` have none
        return not (before[-1].isdigit() and run["run"] <= "[f]")
    word = LAST_WORD.search(before)
    return word is not None and bool(
        CODE_NAME.fullmatch(word[0]) or (not from_wikipedia and COMMON_CODE_NAME.fullmatch(word[0]))
    )


def _is_in_brackets(run: re.Match[str]) -> bool:
    """Return whether a run is inside another bracket. No mark is, and without the run the outer one could be a mark."""
    text, start = run.string, run.start()
    return text.rfind("[", 0, start) > text.rfind("]", 0, start) and TO_CLOSING.match(text, run.end()) is not None
