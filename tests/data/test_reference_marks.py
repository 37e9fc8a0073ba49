"""Wikipedia's reference marks are removed; an index, a date, an interval, a list or a link stays."""

import re

import pytest
from hypothesis import given

from tests.data.test_clean_text import ALL, TEXTS, cleaned, cleaner

MARKS = [
    ("The islands.[2] The town[12][3] is", "The islands. The town is"),
    ("It ends.[7]\n\nNext.[8]\tMore", "It ends.\n\nNext.\tMore"),
    ("of walls,[1] and of gates;[34] so it is", "of walls, and of gates; so it is"),
    ('the "end".[1] the "end."[2] the end),[3] (the end.)[4] so', 'the "end". the "end." the end), (the end.) so'),
    ("a river (/r\u026av\u0259/[3][4]), long", "a river (/r\u026av\u0259/), long"),
    ("The 47[2] (a tram of 19)[3] is", "The 47 (a tram of 19) is"),
    ("a hill near town[2][3]) and with a wall[40] around it", "a hill near town) and with a wall around it"),
    ("in 1990[6] and 1812[a] \u2013 1890", "in 1990 and 1812 \u2013 1890"),
    ("It was.[1] [2] Next. Then,[1],[2] so.[1], [3] End", "It was. Next. Then, so. End"),
    ("an end.[12]: 34 Next.[12]:34\u201336\nLast.[3]:5", "an end. Next.\nLast."),
    ("an end.[note 1] a name[nb 2] and it,[n 3] tales.[T 4] ships,[Jp 5]", "an end. a name and it, tales. ships,"),
    ("in 1999.[citation needed] many[who?] say,[when?] is on.[dubious \u2013 discuss] It",
     "in 1999. many say, is on. It"),
    ("it was cut.[8", "it was cut."),
    ("\u5c71\u3002[3] \u5c71", "\u5c71\u3002 \u5c71"),
    ("Python was made.[3] Its arrays[4] are", "Python was made. Its arrays are"),
    ("Use `a[1]` so.[2] It is", "Use `a[1]` so. It is"),
    ("It is so.[1]\nx = y.[2]\nIt is so.[3]", "It is so.\nx = y.[2]\nIt is so."),
]  # fmt: skip


@pytest.mark.parametrize(("text", "without"), MARKS)
def test_wikipedias_marks_are_removed(text: str, without: str) -> None:
    assert ALL.clean(text, marks=True) == (without, ("reference_marks",))


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


def test_marks_stay_in_texts_that_are_not_searched_for_them() -> None:
    assert ALL.clean("It is so.[1]", marks=False) == ("It is so.[1]", ())


NO_MARKS = [
    "take items[0].name", "x[10] is the last", "a[1][2] = 3",
    "my_list[2] and $var[3] and self.rows[4] and grid2[5] and myGrid[6] are",
    "If i is 2 then row[i] is good and Name[2] is", "print(a) shows Name[2] and town[3] now",
    "def f():\n    return Name[1]", "def f(a, b):\n    return Name[1]", "while (a < b) town[3] is",
    "go {\n  town[3] is", "so town[4] = 5 and town[3] is", "town[0] is the first and town[1] is the second",
    "type .[1] or (.[2] so", "for (;;) {\n  go(Name[1]);\n}", "```\nIt is so.[1] And town[2] is\n```",
    "Type `it is.[4] so` here", "`x` is a name and town[3] is too", "town[3] + 1 and town[2] * 2 and town[1]/2 are",
    "the interval [3, 4] and [0,1] and [5] and (0,[1])", "set x to [1] or to the list [5].",
    "in [2019] it was; on the day[2019] of it", "on [12 May] it was",
    "see [1](https://example.org) and town[2](https://example.org) and end.[3](https://example.org)",
    "[1]: https://example.org", "[1] A. Writer, A Book.\n[2] B. Writer", "pronounced [t] and [to]",
    "he [sic] said that [the king] and the king[s] in the 1990[s] were", "write size[N] and a letter",
    "Dear [name], [1] is it", "a line[01] and a line[1000] and a line[1.5] and town[a] are",
    "[quoted.[1] words] and [quoted[1] words]", "key:[1] and f(a,[2])",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_MARKS)
def test_what_only_looks_like_a_mark_stays_even_below_a_mark(text: str) -> None:
    assert ALL.clean(text, marks=True) == (text, ())
    assert cleaned(f"It is so.[1]\n{text}") == f"It is so.\n{text}"


@pytest.mark.parametrize(
    "text",
    [
        *(f"so the {name}[3] is" for name in ("args", "data", "rows", "matrix", "str", "col1", "myRow")),
        "an array of towns: town[3] is the fourth",
        "in Python the town[3] is the fourth",
        "on example.org[4] and the iPad[2] it is",
    ],
)
def test_what_may_be_an_index_goes_only_from_a_text_with_a_mark_behind_a_sentence(text: str) -> None:
    assert ALL.clean(text, marks=True) == (text, ())
    assert cleaned(f"It is so.[1] And {text}") == "It is so. And " + re.sub(r"\[\d\]", "", text)
