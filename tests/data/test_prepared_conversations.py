"""Conversations in `prepare`: their turns and system messages are kept, and no turn leaks."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from howto.data.clean_text import normal_key
from howto.data.minhash import jaccard, shingle_set
from tests.data.test_prepare import (
    FEW,
    FILLING,
    INTENTS,
    RESPONSES,
    ROWS,
    TINY,
    assert_nothing_leaks,
    intent_of,
    plain,
    prepared,
    raw,
)
from tests.support.raw_files import PARAMS, Prepared, Raw, words


def talk(*turns: str, system: str = "", category: str = "open_qa") -> Raw:
    """A row of a conversation: what the user and the model say by turns."""
    messages = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    messages += [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]
    return {"messages": messages, "category": category}


def test_earlier_turns_and_the_system_message_are_cleaned_and_kept_in_the_row() -> None:
    turns = ("How do\u00a0I\r\nstart?", "So.[1] And  so.", "And then?", "Stop.[2]")
    made = prepared([*plain(40), talk(*turns, system=" Be\u00a0brief. ")])
    (row,) = [row for row in made.kept if "history" in row]
    assert row["instruction"] == "Be brief." and row["input"] == "And then?" and row["output"] == "Stop."
    assert row["history"] == [
        {"role": "user", "content": "How do I\nstart?"},
        {"role": "assistant", "content": "So. And so."},
    ]
    assert {row["instruction"] for row in made.kept if "history" not in row} == {PARAMS.instruction}
    cleaned = made.metrics["cleaned"]
    expected = {"line_ends": 1, "invisible_characters": 1, "blanks": 1, "reference_marks": 1}
    assert {step: count for step, count in cleaned.items() if count} == expected


def test_a_row_without_history_has_the_same_id_and_split_as_ever_and_a_history_or_system_message_another_id() -> None:
    (row,) = [row for row in prepared([*plain(40), raw("How?", "So.")]).kept if row["input"] == "How?"]
    assert row["id"] == hashlib.sha256(b"How?\0\0So.").hexdigest()[:16]
    same = [talk("How?", "So."), talk("How?", "So.", system=PARAMS.instruction), talk("How?", "So.", system=" ")]
    for one in same:
        assert row in prepared([*plain(40), one]).kept
    others = [talk("How?", "So.", system="Be brief."), talk("Why?", "Well.", "How?", "So.")]
    ids = {row["id"] for row in prepared([*plain(40), *others]).kept if row["input"] == "How?"}
    assert row["id"] not in ids and len(ids) >= 1


def test_rows_that_differ_in_history_or_system_message_are_no_duplicates() -> None:
    start, other = words(1, 40), words(2, 40)
    talks = [
        talk(start, "Well.", "And then?", "Stop."),
        talk(other, "Well.", "And then?", "Stop."),
        talk(start, other, "And then?", "Stop."),
        talk("And then?", "Stop."),
        talk("And then?", "Stop.", system="Be brief."),
        talk(start.upper() + "!", "well", "and then", "stop"),
        talk(start + " so", "Well.", "And then?", "Stop."),
    ]
    made = prepared([*plain(40), *talks])
    rejected = {row["source"].rsplit(":")[-1]: row["reason"] for row in made.rejected}
    assert {line: reason for line, reason in rejected.items() if "duplicate" in reason} == {
        "46": "duplicate",
        "47": "near_duplicate",
    }


def test_rows_of_one_conversation_are_in_one_split_and_none_is_lost() -> None:
    turns = [[f"{words(9 * number + turn, 6)}?" for turn in range(4)] for number in range(60)]
    rows = []
    for asked in turns:
        said = [text for question in asked for text in (question, f"Answer to {question}")]
        rows += [talk(*said[:end]) for end in (2, 4, 6, 8)]
    made = prepared(rows)
    assert len(made.kept) == 240 and all(len(rows) > 4 for rows in made.splits.values())
    first = {
        name: {(row.get("history") or [{"content": row["input"]}])[0]["content"] for row in rows}
        for name, rows in made.splits.items()
    }
    assert not first["train"] & first["test"] and not first["train"] & first["validation"]


def turns_of(row: Raw) -> list[str]:
    """The keys of what the user says in a row."""
    return [normal_key(turn["content"]) for turn in row.get("history", [])[::2]] + [normal_key(intent_of(row))]


def assert_no_turn_is_in_two_splits(made: Prepared) -> None:
    assert_nothing_leaks(made)
    where: dict[str, set[str]] = {}
    for name, rows in made.splits.items():
        for turn in (turn for row in rows for turn in turns_of(row)):
            where.setdefault(turn, set()).add(name)
    assert [turn for turn, splits in where.items() if len(splits) > 1] == []
    sets = [(shingle_set(turn), splits) for turn, splits in where.items()]
    for number, (one, split) in enumerate(sets):
        assert not [other for other, another in sets[:number] if split != another and jaccard(one, other) >= 0.8]


def test_rows_that_share_a_turn_with_a_given_test_are_rejected() -> None:
    radiator, key = "How do I bleed the old radiator in the hall downstairs?", "Which key do I need for it?"
    test = [talk(radiator, "Open it.", key, "A square one."), talk("What is a fern?", "A plant.")]
    matching = [
        talk(radiator, "Open it.", "Which pot?", "None."),  # a history of the test
        talk(radiator.upper(), "Open it."),  # an earlier turn of the test as the intent
        talk("May I ask?", "Yes.", key, "Another."),  # an intent of the test
        talk("May I ask?", "Yes.", "What is a fern", "A plant.", "Why is that?", "So."),  # ... as an earlier turn
        talk(radiator.replace("radiator", "radiators"), "So.", "May we?", "No."),  # near to an earlier turn of the test
    ]
    kept = talk("May I ask?", "Yes.", "What may I ask?", "Anything.")
    made = prepared([*plain(60), *matching, kept], test=test)
    assert {row["source"].rsplit(":")[-1]: (row["reason"], row["detail"]) for row in made.rejected} == {
        "61": ("matches_test", "shares a turn with data/raw/test/made.jsonl:1"),
        "62": ("matches_test", "shares a turn with data/raw/test/made.jsonl:1"),
        "63": ("matches_test", "has the intent of data/raw/test/made.jsonl:1"),
        "64": ("matches_test", "shares a turn with data/raw/test/made.jsonl:2"),
        "65": ("matches_test", "has the near intent of data/raw/test/made.jsonl:1"),
    }
    assert "What may I ask?" in {row["input"] for row in made.kept}
    assert_no_turn_is_in_two_splits(made)


TALKS = st.lists(
    st.builds(
        lambda texts, answer: talk(*(said for text in texts for said in (text, answer))),
        st.lists(INTENTS, min_size=1, max_size=3),
        RESPONSES,
    ),
    max_size=12,
)


@FEW
@given(TALKS, ROWS, TALKS)
def test_no_turn_of_a_conversation_is_in_two_splits(talks: list[Raw], rows: list[Raw], test: list[Raw]) -> None:
    assert_no_turn_is_in_two_splits(prepared([*FILLING, *talks, *rows], TINY, test))


@FEW
@given(TALKS)
def test_prepare_changes_nothing_in_the_conversations_that_it_has_made(talks: list[Raw]) -> None:
    first = prepared([*FILLING, *talks], TINY)
    again = prepared(first.kept, TINY)
    assert again.rejected == [] and again.splits == first.splits


def test_an_empty_earlier_turn_is_a_reason_to_reject_a_row() -> None:
    rows = [talk("\u200b", "So.", "How?", "So."), talk("Well?", " ", "How?", "So.")]
    made = prepared([*plain(40), *rows])
    assert [row["reason"] for row in made.rejected] == ["empty_instruction", "empty_response"]
