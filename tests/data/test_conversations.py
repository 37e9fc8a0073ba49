"""A conversation is read in every spelling that occurs, or says what is wrong with it."""

import json
from typing import Any

import pytest

from howto.data.config import Columns
from howto.data.formats.raw_rows import RawTexts, parse_row
from howto.data.formats.row_formats import BadRow, RowFormats

COLUMNS = Columns(instruction="instruction", context="context", response="response", category="category")
SYSTEM, ASKED, WHICH = ("system", "Be brief."), ("user", "How do I repot a fern?"), ("assistant", "Which pot?")
BLUE, ANSWER = ("user", "A blue one."), ("assistant", "1. So.")
TALK = [SYSTEM, ASKED, WHICH, BLUE, ANSWER]
READ = RawTexts(BLUE[1], "", ANSWER[1], "", (), SYSTEM[1], (ASKED[1], WHICH[1]))


def parse(row: Any, columns: Columns = COLUMNS, *, answered: bool = True) -> RawTexts:
    return parse_row(json.dumps(row).encode(), RowFormats(columns, answered=answered))[0]


def openai(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in turns]


def sharegpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[role], "value": text} for role, text in turns]


def parts(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text[:2]}, {"type": "text", "text": text[2:]}]


SPELLINGS: dict[str, Any] = {
    "OpenAI": {"messages": openai(*TALK)},
    "ShareGPT": {"conversations": sharegpt(*TALK)},
    "ShareGPT under OpenAI's name": {"messages": sharegpt(*TALK)},
    "OpenAI under ShareGPT's name": {"conversations": openai(*TALK)},
    "mixed keys": {"messages": [{"from": role, "content": text} for role, text in TALK]},
    "other names of roles": {
        "conversations": [
            {"from": {"user": "User", "assistant": "chatgpt", "system": "developer"}[role], "value": text}
            for role, text in TALK
        ]
    },
    "keys of both, null where unused": {
        "messages": [{"role": role, "content": text, "from": None, "value": None} for role, text in TALK]
    },
    "parts": {"messages": openai(*((role, parts(text)) for role, text in TALK))},
    "parts with keys for images": {
        "messages": openai(*((role, [{"type": "text", "text": text, "image_url": None}]) for role, text in TALK))
    },
    "JSON in a text": {"messages": json.dumps(openai(*TALK))},
    "an object of lists": {"conversations": {"from": [role for role, _ in TALK], "value": [text for _, text in TALK]}},
    "prompt and completion": {"prompt": openai(*TALK[:-1]), "completion": openai(TALK[-1])},
    "prompt and completion as JSON": {
        "prompt": json.dumps(openai(*TALK[:-1])),
        "completion": json.dumps(openai(TALK[-1])),
    },
    "a prompt of messages with a text": {"prompt": openai(*TALK[:-1]), "completion": ANSWER[1]},
    "a completion of several messages": {"prompt": openai(*TALK[:2]), "completion": openai(*TALK[2:])},
    "the column system": {"system": SYSTEM[1], "conversations": sharegpt(*TALK[1:])},
    "the system message twice": {"system": SYSTEM[1], "messages": openai(*TALK)},
    "Alpaca with a history": {
        "instruction": BLUE[1], "input": "", "output": ANSWER[1], "system": SYSTEM[1],
        "history": [[ASKED[1], WHICH[1]]],
    },
    "a row that prepare wrote": {
        "id": "0", "category": "", "instruction": SYSTEM[1], "input": BLUE[1], "context": "", "output": ANSWER[1],
        "history": openai(ASKED, WHICH),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_last_answer_is_the_response_and_what_was_said_before_the_history(name: str) -> None:
    assert parse(SPELLINGS[name]) == READ


def test_a_conversation_of_one_turn_is_the_same_row_as_its_texts() -> None:
    texts = parse({"instruction": ASKED[1], "response": ANSWER[1]})
    assert parse({"messages": openai(ASKED, ANSWER)}) == parse({"conversations": sharegpt(ASKED, ANSWER)}) == texts
    assert parse({"prompt": ASKED[1], "completion": openai(ANSWER)}) == texts
    assert parse({"messages": openai(("system", ""), ASKED, ANSWER)}) == texts
    assert texts == RawTexts(ASKED[1], "", ANSWER[1], "", ())


def test_text_that_has_brackets_is_text() -> None:
    for text in ('[{"a": 1}] is what?', "[1] How?", "[{role}]", "{}"):
        assert parse({"prompt": text, "completion": text}) == RawTexts(text, "", text, "", ())


def test_a_column_beside_the_conversation_is_its_context_or_category() -> None:
    row = {"messages": openai(ASKED, ANSWER), "context": "A text.", "category": "garden"}
    assert parse(row) == RawTexts(ASKED[1], "A text.", ANSWER[1], "garden", ())


def test_without_an_answer_the_last_turn_of_the_user_is_the_intent() -> None:
    for talk in (TALK[:-1], TALK):
        assert parse({"messages": openai(*talk)}, answered=False) == READ._replace(response="")


IMAGE = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "x"}}]
BAD: dict[str, tuple[Any, str]] = {
    "no messages": ([], "the conversation has no turn of the user"),
    "only a system message": (openai(SYSTEM), "the conversation has no turn of the user"),
    "no answer": (openai(ASKED), "the conversation ends without an answer"),
    "the user has the last word": (openai(*TALK, BLUE), "the conversation ends without an answer"),
    "an answer first": (openai(WHICH, BLUE, ANSWER), "message 1: expected a message of the user, got one of the ass"),
    "two turns in a row": (openai(ASKED, BLUE, ANSWER), "message 2: expected a message of the assistant"),
    "two answers in a row": (openai(ASKED, WHICH, ANSWER), "message 3: expected a message of the user"),
    "a late system message": (openai(ASKED, SYSTEM, ANSWER), "message 2: expected a message of the assistant"),
    "two system messages": (openai(SYSTEM, SYSTEM, ASKED, ANSWER), "message 2: expected a message of the user"),
    "a tool": (openai(ASKED, ("tool", "{}"), ANSWER), "message 2: expected the role system, user or assistant, got"),
    "no role": ([{"content": "How?"}], "message 1: expected the role system, user or assistant, got None"),
    "a call": ([*openai(ASKED), {"role": "assistant", "content": None, "tool_calls": [{}]}], "got tool_calls"),
    "an image": (openai(("user", IMAGE), ANSWER), "message 1: expected parts of the type 'text', got 'image_url'"),
    "a number": (openai(ASKED, ("assistant", 3)), "message 2: expected text, got 3"),
    "no content": (openai(ASKED, ("assistant", None)), "message 2: expected text, got None"),
    "half a character": (openai(ASKED, ("assistant", "\ud83d")), "message 2: expected text, got half of a surrogate"),
    "a text": ("How do I?", "expected a list of messages as JSON, got 'How do I?'"),
    "Python's notation": ("[{'role': 'user'}]", "expected a list of messages as JSON"),
    "null": (None, "expected text or a list of messages, got None"),
    "an object": ({"role": "user"}, "expected text or a list of messages, got {'role'"),
    "texts": (["How?", "So."], "message 1: expected an object with role and content, got 'How?'"),
    "an answer of no weight": ([*openai(ASKED), {**openai(ANSWER)[0], "weight": 0}], "the weight 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_conversation_with_an_answer_is_a_bad_row_with_its_reason(name: str) -> None:
    messages, phrase = BAD[name]
    with pytest.raises(BadRow) as bad:
        parse({"messages": messages})
    assert phrase in str(bad.value) and "\n" not in str(bad.value)


@pytest.mark.parametrize(
    ("row", "phrase"),
    [
        ({"prompt": openai(ASKED), "completion": []}, "ends without an answer"),
        ({"prompt": ASKED[1], "completion": None}, ""),
        ({"prompt": openai(*TALK), "completion": "So."}, "message 6: expected a message of the user"),
        ({"prompt": ASKED[1], "completion": {"text": "So."}}, "'completion': expected text or a list of messages"),
        ({"system": "Be long.", "messages": openai(*TALK)}, "message 2: expected a message of the user"),
        ({"instruction": "a", "output": "b", "history": [["c"]]}, "column 'history': expected pairs"),
        ({"prompt": "[{'role': 'user', 'content': 'How?'}]", "completion": "So."}, "as JSON"),
    ],
)  # fmt: skip
def test_two_columns_that_are_no_conversation_are_a_bad_row(row: Any, phrase: str) -> None:
    if not phrase:
        assert parse(row).response == ""  # an empty answer is not a bad row: prepare rejects it as empty
        return
    with pytest.raises(BadRow) as bad:
        parse(row)
    assert phrase in str(bad.value)


def test_keys_of_messages_that_are_not_read_are_told() -> None:
    messages = [*openai(ASKED), {**openai(ANSWER)[0], "reasoning_content": "Well.", "name": None, "weight": 1}]
    _, found = parse_row(json.dumps({"messages": messages, "id": 1}).encode(), RowFormats(COLUMNS))
    assert found.unread == ("id", "reasoning_content of a message")
