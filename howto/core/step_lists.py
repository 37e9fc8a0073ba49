"""Recognise step-by-step text: numbered lists, and the other forms of steps that people write."""

import re
from typing import NamedTuple

WIDE = "\uff0e\u3001\uff09"  # behind a number in Chinese and Japanese, where no space follows
NUMBER = re.compile(rf"^[^\S\n]*(\d+)(?:[.)]\s+\S|[.){WIDE}]\s*[^\s\x00-\x7f])", re.MULTILINE)


def step_numbers(text: str) -> list[int]:
    """Return the numbers at the starts of lines, in order: [1, 2, 3] for a list of three steps."""
    return [int(match[1]) for match in NUMBER.finditer(text)]


def is_numbered(reference: str) -> bool:
    """Return whether a reference is a list of at least two numbered steps and nothing else."""
    return len(step_numbers(reference)) >= 2 and is_well_numbered(reference)


def is_well_numbered(text: str) -> bool:
    """Return whether every line of an answer is a step, and the steps are numbered 1 to n without a gap."""
    numbers = step_numbers(text)
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(numbers) and numbers == list(range(1, len(lines) + 1))


def is_procedural(reference: str) -> bool:
    """Return whether a reference has steps or points in any form.

    That is a numbered or bulleted list of at least two items, perhaps among other lines, or sentences in an order given
    by words: "first ... then", "step one ... step two".
    """
    text = reference.lower()
    return any(_in_this_order(form.patterns, text) for form in FORMS if form.may_be_in(text))


class Form(NamedTuple):
    """One form of steps: a text in lower case has it if it matches `patterns` one after the other.

    Every such text contains one of `hints` and all of `needs`. Looking for these first saves most of the time.
    """

    hints: tuple[str, ...]
    needs: tuple[str, ...]
    patterns: tuple[re.Pattern[str], ...]

    def may_be_in(self, text: str) -> bool:
        """Return whether the text can have this form, before its patterns are tried."""
        return any(hint in text for hint in self.hints) and all(need in text for need in self.needs)


def _in_this_order(patterns: tuple[re.Pattern[str], ...], text: str) -> bool:
    end = 0
    for pattern in patterns:
        if (match := pattern.search(text, end)) is None:
            return False
        end = match.end()
    return True


def _item(number: int) -> re.Pattern[str]:
    """Match a list item with this number: `1. Go`, `1) Go`, `(1) Go`, `1: Go`, `1 - Go`, `**1.** Go`, `## 1. Go`.

    The decimal 1.5, the time 1:30 and the score 1 - 0 do not match.
    """
    marker = rf"\(?{number}[.):{WIDE}][*_]*(?:[ \t]+\S|[^\s\d*_])|{number} [-\u2013] [^\s\d]"
    return re.compile(rf"^[ \t]*(?:#+ )?[*_]*(?:{marker})", re.MULTILINE)


def _item_in_a_line(number: int) -> re.Pattern[str]:
    """Match a list item inside a paragraph: `1) stop, 2) look, (3) go`."""
    return re.compile(rf"(?<!\S)\(?{number}[.)][ \t]+\S")


def _sentence(beginning: str) -> re.Pattern[str]:
    """Match a sentence, or a clause after a colon or semicolon, that begins with these words."""
    return re.compile(rf"(?:^[ \t]*|[.!?:;][\"')\u201d]?[ \t]{{1,3}})(?:{beginning})\b", re.MULTILINE)


_BULLETS = "-\u2022\u00b7\u25cf\u25aa\u25e6\u2023\u25cb\u25a0"  # also directly before a word
BULLET = re.compile(rf"^[ \t]*(?:[{_BULLETS}*+\u2013][ \t]+(?=.*\w)|[{_BULLETS}](?=[^\W\d]))", re.MULTILINE)
FIRST = _sentence(
    "first(?:ly)?(?! and foremost| off| of all)|to (?:start|begin)(?: with)?(?=,)|(?:start|begin) (?:by|with)"
)
LATER = _sentence("then|next(?! (?:day|week|month|year|time|door))|after (?:that|this)|afterwards?|finally")
FORMS = (
    Form(("\n",), ("1", "2"), (_item(1), _item(2))),
    Form(("3.", "3)"), ("1", "2"), (_item_in_a_line(1), _item_in_a_line(2), _item_in_a_line(3))),
    Form(("\n",), (), (BULLET, BULLET)),
    Form(("step 2", "step two"), (), (re.compile(r"\bstep (?:1|one)\b"), re.compile(r"\bstep (?:2|two)\b"))),
    Form(("first", "start", "begin"), (), (FIRST, LATER)),
    # "First ... second" without a third lists arguments as often as steps.
    Form(("third",), ("second",), (FIRST, _sentence("second(?:ly)?"), _sentence("third(?:ly)?"))),
)
