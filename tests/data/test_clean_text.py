"""Cleaning takes dirt away, keeps what a row says, and has nothing left to do on what it has cleaned."""

from __future__ import annotations

import json
import pickle
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from howto.data.clean_text import Cleaner, normal_key, repeats
from howto.data.config import Clean

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
# Found by hypothesis, by millions of texts put together at random from PIECES, and by thought: what one pass took away
# made something that the next one would take away.
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
def test_what_is_cleaned_stays_as_it_is(text: str, steps: set[str], marks: bool) -> None:
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


OWN = {
    "line_ends": "\r\v\f\x85\u2028\u2029",
    "control_characters": "".join(map(chr, [*range(9), *range(14, 32), *range(127, 133), *range(134, 160)])),
    "invisible_characters": "\u00a0\u3000\u200b\u200c\u200d\ufeff\u00ad\u2060",
}


@given(TEXTS)
def test_a_step_that_is_switched_off_leaves_its_characters(text: str) -> None:
    for step, own in OWN.items():
        left = cleaner(*set(STEPS) - {step}).clean(text, marks=False)[0]
        assert [c for c in left if c in own] == [c for c in text if c in own]
    assert cleaner().clean(text, marks=True) == (text, ())


@given(TEXTS)
def test_the_steps_for_white_space_change_no_word(text: str) -> None:
    after, _ = cleaner("line_ends", "blanks").clean(text, marks=True)
    assert after.split() == text.split()


@given(TEXTS, SOME_STEPS)
def test_a_text_without_brackets_has_no_marks(text: str, steps: set[str]) -> None:
    text = text.replace("[", "")
    with_marks, without = cleaner(*steps, "reference_marks"), cleaner(*steps - {"reference_marks"})
    assert with_marks.clean(text, marks=True) == without.clean(text, marks=True)


@given(TEXTS)
def test_marks_take_nothing_with_them(text: str) -> None:
    """But pages behind a colon and a space between two marks; a space may come in their place."""
    bracket = re.compile(r"\[[^\[\]]*\](?=(:\s?[0-9]+)?)|\[[0-9]*\Z|:|\s")
    after, _ = cleaner("reference_marks").clean(text.replace(":", ""), marks=True)

    def bare(text: str) -> str:
        while (less := bracket.sub("", text)) != text:
            text = less
        return text

    assert bare(after) == bare(text)


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
def test_each_step_does_its_work_by_itself_and_is_named(step: str, dirty: str, clean: str) -> None:
    assert cleaner(step).clean(dirty, marks=True) == (clean, (step,))
    assert cleaner(step).clean(clean, marks=True) == (clean, ())


def test_all_steps_that_changed_a_text_are_named_once_in_their_order() -> None:
    dirty = "\u0645\u200c \u200be\u200c\u0301\u200d\r\n\x00so  it is.[1]"
    assert ALL.clean(dirty, marks=True) == ("\u0645 \u00e9\nso it is.", STEPS)


def test_marks_stay_where_they_are_not_asked_for() -> None:
    assert ALL.clean("It is so.[1]", marks=False) == ("It is so.[1]", ())


def test_a_cleaner_can_be_sent_to_another_process() -> None:
    copy = pickle.loads(pickle.dumps(cleaner("blanks")))
    assert copy.clean("a  b\r\n", marks=True) == ("a b\r", ("blanks",))


@pytest.mark.parametrize(
    "text",
    [
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian: a verb and its prefix
        "\u0915\u094d\u200d\u0937",  # Hindi: a half letter in place of a ligature
        "\u09b0\u200d\u09cd\u09af",  # Bengali: a joiner in front of a virama
        "\u0dc1\u0dca\u200d\u0dbb\u0dd3",  # Sinhala: the first letters of the island's name
        "\u1780\u200c\u1781",  # Khmer
        "\U0001f469\u200d\U0001f680",  # astronaut
        "\U0001f469\U0001f3fd\u200d\u2764\ufe0f\u200d\U0001f468",  # couple
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # flag of England
    ],
)
def test_joiners_stay_where_they_are_read(text: str) -> None:
    assert ALL.clean(text, marks=True) == (text, ())


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("in\u200cvisible\u200d", "invisible"),
        ("\u200d\U0001f680 \U0001f680\u200d", "\U0001f680 \U0001f680"),
        ("\U0001f469\u200c\U0001f680", "\U0001f469\U0001f680"),
        ("\u0645\u200c", "\u0645"),
        ("\u0645\u200c\u200c\u06cc", "\u0645\u200c\u06cc"),
        ("Do.\U000e0049\U000e0067\U000e006e\U000e006f\U000e0072\U000e0065", "Do."),  # a hidden word
    ],
)
def test_joiners_and_tags_go_where_nobody_sees_them(dirty: str, clean: str) -> None:
    assert cleaned(dirty) == clean


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    if x:\n        return 1",
        "- one\n  - two\n\t- three\n \t - four\n\t  - five",
        "Name\tYear\nOak\t\t1990",
        "Run:\n```\na   = 1\n\n\n\nbcd = 2   \n```\nDone.",
        "~~~\na   b\n",
    ],
)
def test_indentation_tables_and_fenced_code_stay(text: str) -> None:
    assert cleaned(text) == text.rstrip("\n")


def test_blanks_go_around_fenced_code() -> None:
    assert cleaned("a  b\n\n\n\n```\nc  d\n```\n\n\n\ne  f") == "a b\n\n```\nc  d\n```\n\ne f"
    assert cleaned("a \t b") == "a\tb"
    assert cleaned("```x  y``` is  code") == "```x y``` is code"


MARKS = [
    ("The islands.[2] The town[12][3] is", "The islands. The town is"),
    ("It ends with one.[7]", "It ends with one."),
    ("It ends.[7]\n\nNext.[8]\tMore", "It ends.\n\nNext.\tMore"),
    ("of walls,[1] and of gates;[34] so it is", "of walls, and of gates; so it is"),
    ('the "end".[1] the "end."[2] the end),[3] (the end.)[4] so', 'the "end". the "end." the end), (the end.) so'),
    ("a river (/r\u026av\u0259/[3][4]), long", "a river (/r\u026av\u0259/), long"),
    ("The 47[2] (a tram of 19)[3] is", "The 47 (a tram of 19) is"),
    ("a hill near town[2][3]) and with a wall[40] around it", "a hill near town) and with a wall around it"),
    ("in 1990[6] and 1812[a] \u2013 1890", "in 1990 and 1812 \u2013 1890"),
    ("It is a fort.[m][25] Its walls", "It is a fort. Its walls"),
    ("It was.[1] [2] Next. Then,[1],[2] so.[1], [3] End", "It was. Next. Then, so. End"),
    ("an end.[2]Next", "an end. Next"),
    ("an end.[12]: 34 Next.[12]:34\u201336\nLast.[3]:5", "an end. Next.\nLast."),
    ("an end.[note 1] a name[nb 2] and it,[n 3] tales.[T 4] ships,[Jp 5]", "an end. a name and it, tales. ships,"),
    ("in 1999.[citation needed] many[who?] say,[when?] is on.[dubious \u2013 discuss] It",
     "in 1999. many say, is on. It"),
    ("so it was.[failed verification][3]", "so it was."),
    ("it was cut.[8", "it was cut."),
    ("it was cut.[", "it was cut."),
    ("\u5c71\u3002[3] \u5c71", "\u5c71\u3002 \u5c71"),
    ("New data[3] were found.[4]", "New data were found."),  # a name that programmers like, but on Wikipedia
    ("Python was made.[3] Its arrays[4] are", "Python was made. Its arrays are"),
    ("Use `a[1]` so.[2] It is", "Use `a[1]` so. It is"),
    ('Use `a` "so."[2] It is', 'Use `a` "so." It is'),
    ("It is so.[1]\nx = y.[2]\nIt is so.[3]", "It is so.\nx = y.[2]\nIt is so."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "without"), MARKS)
def test_wikipedias_marks_go(text: str, without: str) -> None:
    assert ALL.clean(text, marks=True) == (without, ("reference_marks",))


NO_MARKS = [
    "take items[0].name",
    "x[10] is the last",
    "a[1][2] = 3",
    "my_list[2] and $var[3] and self.rows[4] and grid2[5] and myGrid[6] are",
    "If i is 2 then row[i] is good and Name[2] is",
    "print(a) shows Name[2] and town[3] now",
    "def f():\n    return Name[1]",
    "def f(a, b):\n    return Name[1]",
    "while (a < b) town[3] is",
    "go {\n  town[3] is",
    "so town[4] = 5 and town[3] is",
    "town[0] is the first and town[1] is the second",
    "type .[1] or (.[2] so",
    "for (;;) {\n  go(Name[1]);\n}",
    "```\nIt is so.[1] And town[2] is\n```",
    "Type `it is.[4] so` here",
    "`x` is a name and town[3] is too",
    "town[3] + 1 and town[2] * 2 and town[1]/2 are",
    "the interval [3, 4] and [0,1] and [5] and (0,[1])",
    "set x to [1] or to the list [5].",
    "in [2019] it was; on the day[2019] of it",
    "on [12 May] it was",
    "see [1](https://example.org) and town[2](https://example.org) and end.[3](https://example.org)",
    "[1]: https://example.org",
    "[1] A. Writer, A Book.\n[2] B. Writer",
    "pronounced [t] and [to]",
    "he [sic] said that [the king] and the king[s] in the 1990[s] were",
    "write size[N] and a letter",
    "Dear [name], [1] is it",
    "a line[01] and a line[1000] and a line[1.5] and town[a] are",
    "[quoted.[1] words] and [quoted[1] words]",
    "key:[1] and f(a,[2])",
]


@pytest.mark.parametrize("text", NO_MARKS)
def test_what_only_looks_like_a_mark_stays_even_below_a_mark(text: str) -> None:
    assert ALL.clean(text, marks=True) == (text, ())
    assert cleaned(f"It is so.[1]\n{text}") == f"It is so.\n{text}"


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"so the {name}[3] is"
            for name in ("args", "arr", "data", "rows", "matrix", "values", "str", "col1", "myRow")
        ),
        "take items[3] of them",
        "an array of towns: town[3] is the fourth",
        "in Python the town[3] is the fourth",
        "on example.org[4] and the iPad[2] it is",
    ],
)
def test_what_may_be_an_index_goes_only_from_a_text_with_a_mark_behind_a_sentence(text: str) -> None:
    assert ALL.clean(text, marks=True) == (text, ())
    assert cleaned(f"It is so.[1] And {text}") == "It is so. And " + re.sub(r"\[\d\]", "", text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I fix it?", "how do  I FIX it!"),
        ("Caf\u00e9", "CAFE\u0301"),
        ("Stra\u00dfe", "STRASSE"),
        ("\uff21\uff22 \ufb01x", "ab fix"),
        ("\u0130", "i\u0307"),
        ("\u0390", "\u03aa\u0301"),
        ("\u3391", "khz"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940!", "\u0939\u093f\u0928\u094d\u0926\u0940"),
        ("? ?", "??"),
        ("a\u2764\ufe0fb", "a b"),
    ],
)
def test_texts_that_say_the_same_have_one_key(one: str, other: str) -> None:
    assert normal_key(one) == normal_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a b", "ab"),
        ("???", "!!!"),
        ("\U0001f697", "\U0001f3e0"),
        ("\u2764\ufe0f", "\u2600\ufe0f"),
        ("\u0915\u093f", "\u0915\u0940"),  # two vowel signs
        ("\u0915\u093f\u0924", "\u0915 \u0924"),
        ("snake_case", "snake case"),
        ("\u0915\u093f_\u0915", "\u0915\u093f \u0915"),
    ],
)
def test_texts_that_say_something_else_have_different_keys(one: str, other: str) -> None:
    assert normal_key(one) != normal_key(other)


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
    ("response", "does"),
    [
        (CONTEXT, True),
        (f"The {CONTEXT}", True),
        (CONTEXT.replace(",", "").replace(". ", ".\n"), True),
        (CONTEXT.removesuffix(" turns."), True),
        (CONTEXT.removesuffix(" it still turns."), False),
        ("It was built of stone in the year 1743, and it still turns.", False),
        (CONTEXT.upper(), False),
        (CONTEXT.replace("mill", "fort"), False),
        (f"{CONTEXT} So it is a mill of stone.", False),
        ("", False),
    ],
)
def test_a_response_repeats_its_context_if_it_is_nearly_all_of_it(response: str, does: bool) -> None:
    assert repeats(response, CONTEXT) is does
    assert repeats(CONTEXT, response) is does


def test_a_piece_of_a_word_is_no_repetition() -> None:
    assert not repeats("an old windmil", "an old windmill")
    assert not repeats("", "") and not repeats("???", "!!!")
    assert repeats("???", "? ??")


@given(TEXTS.filter(bool))
def test_a_text_repeats_itself(text: str) -> None:
    assert repeats(text, text)
    assert not repeats(text, "")


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
def test_a_long_text_takes_no_longer_than_its_length(text: str) -> None:
    """A search that starts again at each of 200,000 places would take minutes."""
    once, key = cleaned(text), normal_key(text)
    assert cleaned(once) == once and normal_key(key) == key


def real_texts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted((folder / "dolly").glob("*.jsonl")):
        for line in path.open(encoding="utf-8"):
            row = json.loads(line)
            yield row["context"], row["response"]


def test_no_mark_is_left_in_dolly_and_only_real_ones_go(real_data: Path) -> None:
    """Of 177 numbers in brackets all are marks; what else stands in brackets was read, and 88 are none."""
    taken, stayed = [], []
    for row in real_texts(real_data):
        for text in row:
            once = cleaned(text)
            assert cleaned(once) == once
            before, after = (re.findall(r"\[[^\[\]\n]{0,60}\]", t) for t in (text, once))
            stayed += after
            taken += [bracket for bracket in before if before.count(bracket) > after.count(bracket)]
    assert not [bracket for bracket in stayed if re.fullmatch(r"\[\d+\]", bracket)]
    assert sum(bool(re.fullmatch(r"\[\d+\]", bracket)) for bracket in taken) == 177
    assert len(taken) == 220 and len(stayed) == 88


def test_25_responses_in_dolly_only_repeat_their_contexts(real_data: Path) -> None:
    """All were read: none of their intents asks for a text to be written again in another way."""
    assert sum(repeats(cleaned(response), cleaned(context)) for context, response in real_texts(real_data)) == 25
