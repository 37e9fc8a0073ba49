"""Cleaning removes dirt, keeps what a row says, and changes nothing that it has cleaned."""

import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from howto.data.clean_text import Cleaner, normal_key, repeats
from howto.data.config import Clean
from tests.support.raw_files import read_jsonl

STEPS = tuple(Clean.model_fields)


def cleaner(*steps: str) -> Cleaner:
    """A cleaner with only these steps switched on."""
    return Cleaner(Clean.model_validate({step: step in steps for step in STEPS}))


ALL = cleaner(*STEPS)


def cleaned(text: str) -> str:
    return ALL.clean(text, marks=True)[0]


# Pieces on which steps meet: what each step looks for, and what may compose, join or become a mark without it.
PIECES = [
    "\r\n", "\r", "\v", "\f", "\x85", "\u2028", "\x00", "\x1c", "\x7f", "\x9f", "\t", " ", "  ", "\n", "\n\n",
    "\u00a0", "\u3000", "\u2000", "\u200a", "\u200b", "\u200c", "\u200d", "\ufeff", "\u00ad", "\u200f", "\u2060",
    "\U000e0067", "\U000e007f", "\U0001f3f4", "\U0001f469", "\U0001f680", "\U0001f3fd", "\u2764", "\ufe0f",
    "\u0301", "\u0327", "\u0338", "\u0345", "\u212b", "\u1fef", "\u037e", "\u1100", "\u1161", "\u11a8",
    "\u0915", "\u094d", "\u0937", "\u093c", "\u0951", "\u0dd9", "\u0dca", "\u0dcf", "\u0645", "\u06cc", "\u0653",
    "```", "```\n", "~~~", "\n~~~~\n", "`", "e", "x", "word", "items", "Name", "8086", ".", ",", ";", ":", "!",
    "(", ")", '"', "'", "/", "=", "{", "_", "[", "]", "[1]", "[12][3]", "[0]", "[2019]", "[a]", "[s]", "[note 3]",
    "[citation needed]", "[who?]", "[nb", "[T", " 1]", ":34", ": 5", "\u2013", "def f():", "x = 1", "array", "f(x)",
]  # fmt: skip
TEXTS = st.lists(
    st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=14
).map("".join)
SOME_STEPS = st.sets(st.sampled_from(STEPS))


@settings(max_examples=300)
@given(TEXTS, SOME_STEPS, st.booleans())
# Texts in which the removal of one thing makes another that would be removed next.
@example("[nb[5] 1]", set(STEPS), True)
@example("3[a]:34[a]", set(STEPS), True)
@example(":[1])[1]", set(STEPS), True)
@example(": 5,[a]:34[1]", set(STEPS), True)
@example("word;[1]'[a],'=(/", set(STEPS), True)
@example("x[T 3].)[a]", set(STEPS), True)
@example("word[1].[", set(STEPS), True)
@example("\u0dd9\u200b\u0dca\u200d ", set(STEPS), False)
@example("\u0645\u0951\u200c\u0327\u200d\u06cc", set(STEPS), False)
@example("e\u200c\u0301", set(STEPS), False)
@example("\r  x", {"blanks"}, False)
@example("\u00a0  x", {"blanks"}, False)
def test_a_cleaned_text_is_not_changed_by_cleaning(text: str, steps: set[str], marks: bool) -> None:
    once, changed = cleaner(*steps).clean(text, marks=marks)
    assert cleaner(*steps).clean(once, marks=marks) == (once, ())
    assert set(changed) <= steps and len(set(changed)) == len(changed)
    assert (once != text) == bool(changed)
    if "unicode_nfc" in steps:
        assert unicodedata.is_normalized("NFC", once)


LEFT_OVER = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00a0\u00ad\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f\u2060\u3000\ufeff]"
    "|[ \t]\n|\n\n\n|^[ \t\n]|[ \t\n]\\Z"
)


@given(TEXTS.filter(lambda text: "```" not in text and "~~~" not in text))
def test_no_dirt_is_left(text: str) -> None:
    assert not LEFT_OVER.search(cleaned(text))


@given(TEXTS)
def test_the_steps_for_white_space_change_no_word_and_without_steps_nothing_changes(text: str) -> None:
    assert cleaner().clean(text, marks=True) == (text, ())
    after, _ = cleaner("line_ends", "blanks").clean(text, marks=True)
    assert after.split() == text.split()


@pytest.mark.parametrize(
    ("step", "dirty", "clean"),
    [
        ("line_ends", "a\r\nb\rc\vd\fe\x85f\u2028g\u2029h", "a\nb\nc\nd\ne\nf\ng\nh"),
        ("control_characters", "a\x00b\x08c\x1bd\x7fe\x9ff\tg\n", "abcdef\tg\n"),
        ("invisible_characters", "a\u00a0b\u2009c\u3000d", "a b c d"),
        ("invisible_characters", "\ufeffa\u200bb\u00adc\u2060d\u200ee\u202af\u202e", "abcdef"),
        ("unicode_nfc", "e\u0301 \u212b \ufb01", "\u00e9 \u00c5 \ufb01"),
        ("blanks", "a\r  b  c\x85  d\u00a0  e", "a\r  b c\x85  d\u00a0 e"),
        ("blanks", "  a   b \n\n\n\n c\t\n", "a b\n\n c"),
        ("reference_marks", "It is so.[1]", "It is so."),
    ],
)
def test_each_step_does_its_work_alone_and_is_named(step: str, dirty: str, clean: str) -> None:
    assert cleaner(step).clean(dirty, marks=True) == (clean, (step,))


@pytest.mark.parametrize(
    "text",
    [  # Persian, Hindi, Bengali, Sinhala, Khmer; an astronaut, a couple, a flag; code, lists, a table, fenced code
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0915\u094d\u200d\u0937", "\u09b0\u200d\u09cd\u09af",
        "\u0dc1\u0dca\u200d\u0dbb\u0dd3", "\u1780\u200c\u1781", "\U0001f469\u200d\U0001f680",
        "\U0001f469\U0001f3fd\u200d\u2764\ufe0f\u200d\U0001f468",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "def f():\n    if x:\n        return 1", "- one\n  - two\n\t- three\n \t - four\n\t  - five",
        "Name\tYear\nOak\t\t1990", "Run:\n```\na   = 1\n\n\n\nbcd = 2   \n```\nDone.", "~~~\na   b",
    ],
)  # fmt: skip
def test_joiners_that_are_read_and_indentation_tables_and_fenced_code_stay(text: str) -> None:
    assert ALL.clean(text, marks=True) == (text, ())


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("in\u200cvisible\u200d", "invisible"), ("\u200d\U0001f680 \U0001f680\u200d", "\U0001f680 \U0001f680"),
        ("\U0001f469\u200c\U0001f680", "\U0001f469\U0001f680"), ("\u0645\u200c", "\u0645"),
        ("\u0645\u200c\u200c\u06cc", "\u0645\u200c\u06cc"),
        ("Do.\U000e0049\U000e0067\U000e006e\U000e006f\U000e0072\U000e0065", "Do."),
        ("a  b\n\n\n\n```\nc  d\n```\n\n\n\ne  f", "a b\n\n```\nc  d\n```\n\ne f"), ("a \t b", "a\tb"),
        ("```x  y``` is  code", "```x y``` is code"),
    ],
)  # fmt: skip
def test_joiners_tags_and_blanks_that_nobody_sees_are_removed(dirty: str, clean: str) -> None:
    assert cleaned(dirty) == clean


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("How do I fix it?", "how do  I FIX it!", True), ("Caf\u00e9", "CAFE\u0301", True),
        ("Stra\u00dfe", "STRASSE", True), ("\uff21\uff22 \ufb01x", "ab fix", True), ("\u0130", "i\u0307", True),
        ("\u0390", "\u03aa\u0301", True), ("\u3391", "khz", True),
        ("\u0939\u093f\u0928\u094d\u0926\u0940!", "\u0939\u093f\u0928\u094d\u0926\u0940", True), ("? ?", "??", True),
        ("a\u2764\ufe0fb", "a b", True), ("a b", "ab", False), ("???", "!!!", False),
        ("\U0001f697", "\U0001f3e0", False), ("\u2764\ufe0f", "\u2600\ufe0f", False),
        ("\u0915\u093f", "\u0915\u0940", False), ("\u0915\u093f\u0924", "\u0915 \u0924", False),
        ("snake_case", "snake case", False), ("\u0915\u093f_\u0915", "\u0915\u093f \u0915", False),
    ],
)  # fmt: skip
def test_texts_have_one_key_if_they_have_the_same_words(one: str, other: str, is_same: bool) -> None:
    assert (normal_key(one) == normal_key(other)) is is_same


@given(TEXTS)
def test_a_key_is_its_own_key(text: str) -> None:
    assert normal_key(normal_key(text)) == normal_key(text)
    assert normal_key(f" {text}\n") == normal_key(text)


@given(st.text(st.characters(max_codepoint=127)))
def test_the_fast_way_for_ascii_finds_the_same_words(text: str) -> None:
    words = re.findall(r"\w+", text.lower())
    assert normal_key(text) == (" ".join(words) or "".join(text.split()))


CONTEXT = "The old mill stands by the river. It was built of stone in the year 1743, and it still turns."


@pytest.mark.parametrize(
    ("response", "context", "does"),
    [
        (CONTEXT, CONTEXT, True), (f"The {CONTEXT}", CONTEXT, True),
        (CONTEXT.replace(",", "").replace(". ", ".\n"), CONTEXT, True),
        (CONTEXT.removesuffix(" turns."), CONTEXT, True), (CONTEXT.removesuffix(" it still turns."), CONTEXT, False),
        ("It was built of stone in the year 1743, and it still turns.", CONTEXT, False),
        (CONTEXT.upper(), CONTEXT, False), (CONTEXT.replace("mill", "fort"), CONTEXT, False),
        (f"{CONTEXT} So it is a mill of stone.", CONTEXT, False), ("", CONTEXT, False), ("", "", False),
        ("an old windmil", "an old windmill", False), ("???", "!!!", False), ("???", "? ??", True),
    ],
)  # fmt: skip
def test_a_response_repeats_its_context_if_it_is_nearly_all_of_it(response: str, context: str, does: bool) -> None:
    assert repeats(response, context) is does
    assert repeats(context, response) is does


PLACES = 200_000


@pytest.mark.parametrize(
    "text",
    [piece * (PLACES // len(piece)) for piece in (
        " ", " \t", "\n ", "x  ", "[", "[a", "[nb ", "[aaaaaaaaa ", "[1]", ".[1]", "x[1] y", ":[1])", ",[1]", "[x.[1] ",
        "x[1:", "a(b", "a_", "`", "```", "```\n", "~~~\n", "x.y.", "\u200d", "\u0915\u200d", "\u0301",
        "\U0001f3f4\U000e0067",
    )] + ["[nb" * (PLACES // 6) + " 1]" * (PLACES // 6)],
    ids=lambda text: ascii(text[:12]),
)  # fmt: skip
def test_time_is_linear_in_the_length_of_a_text(text: str) -> None:
    """A quadratic search of 200,000 characters would take minutes."""
    once, key = cleaned(text), normal_key(text)
    assert cleaned(once) == once and normal_key(key) == key


def test_no_mark_is_left_in_dolly_and_only_real_ones_are_removed(real_data: Path) -> None:
    """All 177 numbers in brackets are marks. All other brackets were read: 88 are no marks."""
    rows = [row for part in ("train", "test") for row in read_jsonl(real_data / f"dolly/{part}.jsonl")]
    removed, left = [], []
    for text in (row[column] for row in rows for column in ("context", "response")):
        before, after = (re.findall(r"\[[^\[\]\n]{0,60}\]", t) for t in (text, cleaned(text)))
        left += after
        removed += [bracket for bracket in before if before.count(bracket) > after.count(bracket)]
    assert not [bracket for bracket in left if re.fullmatch(r"\[\d+\]", bracket)]
    assert sum(bool(re.fullmatch(r"\[\d+\]", bracket)) for bracket in removed) == 177
    assert len(removed) == 220 and len(left) == 88
