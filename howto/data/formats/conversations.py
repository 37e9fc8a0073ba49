"""Read conversations: lists of messages as OpenAI and TRL write them, or ShareGPT.

OpenAI's keys are `role` and `content`, ShareGPT's `from` and `value`; files that mix them exist. A conversation has
turns of the user and answers by turns, after a system message if there is one, and ends with an answer.
"""

import json
import re
from typing import Any

from howto.data.formats.row_formats import BadRow

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}
ROLE_KEYS, TEXT_KEYS, CALLS = ("role", "from"), ("content", "value"), ("tool_calls", "function_call")
AS_JSON = re.compile(r"\s*\[\s*\{\s*[\"'](?:role|from|content|value)[\"']\s*:")  # how a list of messages begins

Message = tuple[str, str]  # role (system, user or assistant) and text


def checked_text(value: object, where: str) -> str:
    """Return a text. Raise BadRow if the value is no text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise BadRow(f"{where}: expected text, got {value!r:.40}")
    if "\0" in value:
        raise BadRow(f"{where}: expected text, got a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{where}: expected text, got half of a surrogate pair") from None
    return value


def is_conversation(value: object) -> bool:
    """Return whether the value of a column is a list of messages, or text that looks like one, and not plain text."""
    return isinstance(value, list | dict) or (isinstance(value, str) and AS_JSON.match(value) is not None)


def read_messages(value: object, where: str, unread: set[str]) -> list[Message]:
    """Return the messages of a list, which may be given as JSON, or as an object of lists.

    `where` names the column. The keys of messages that are not read are added to `unread`.

    Raise BadRow if the value is no such list, or a message has another role, a tool call, or other content than text.
    """
    value = _parsed(value, where)
    messages = [_message(item, f"{where}, message {number}", unread) for number, item in enumerate(value, 1)]
    if value and messages[-1][0] == "assistant" and value[-1].get("weight") == 0:
        raise BadRow(f"{where}: the last answer has the weight 0, so nothing is to be learnt from it")
    return messages


def read_exchanges(value: object, where: str, unread: set[str]) -> list[Message]:
    """Return the messages of a history: a list of pairs of a turn and its answer, or of messages.

    Raises as `read_messages`.
    """
    value = _parsed(value, where)
    if not value or not isinstance(value[0], list):
        return read_messages(value, where, unread)
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow(f"{where}: expected pairs of a turn and its answer, got {pair!r:.40}")
    roles = ("user", "assistant")
    return [(role, checked_text(text, where)) for pair in value for role, text in zip(roles, pair, strict=True)]


def split_messages(messages: list[Message], *, answered: bool) -> tuple[str, list[str]]:
    """Return the system message, or "", and the turns: user, assistant, user, ...

    The last turn is an answer if the conversation is `answered`. Else it is the user's: a last answer is left out.

    Raise BadRow if turns and answers do not alternate, or the last of them is missing.
    """
    system = messages[0][1] if messages and messages[0][0] == "system" else None
    turns: list[str] = []
    for number, (role, text) in enumerate(messages[system is not None :], 1 + (system is not None)):
        if role != (expected := ("user", "assistant")[len(turns) % 2]):
            raise BadRow(f"message {number}: expected a message of the {expected}, got one of the {role}")
        turns.append(text)
    if not turns:
        raise BadRow("the conversation has no turn of the user")
    if answered and len(turns) % 2:
        raise BadRow("the conversation ends without an answer")
    return system or "", turns if answered else turns[: len(turns) - (len(turns) % 2 == 0)]


def _parsed(value: object, where: str) -> list[Any]:
    """Return a list that may be given as JSON, or (as `datasets` stores a sequence of objects) as an object of lists.

    Raise BadRow if it is no list.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRow(f"{where}: expected a list of messages as JSON, got {value!r:.40}") from None
    if isinstance(value, dict) and not value.keys().isdisjoint(ROLE_KEYS):
        lists = list(value.values())
        if all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
            value = [dict(zip(value, item, strict=True)) for item in zip(*lists, strict=True)]
    if not isinstance(value, list):
        raise BadRow(f"{where}: expected text or a list of messages, got {value!r:.40}")
    return value


def _message(item: object, where: str, unread: set[str]) -> Message:
    if not isinstance(item, dict):
        raise BadRow(f"{where}: expected an object with role and content, got {item!r:.40}")
    role, text = (next((item[key] for key in keys if item.get(key) is not None), None) for keys in _KEYS)
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise BadRow(f"{where}: expected the role system, user or assistant, got {role!r:.40}")
    if call := next((key for key in CALLS if item.get(key)), None):
        raise BadRow(f"{where}: expected an answer in words, got {call}")
    unread.update(f"{key} of a message" for key, value in item.items() if value is not None and key not in _READ)
    return known, _content(text, where)


_KEYS = (ROLE_KEYS, TEXT_KEYS)
_READ = {*ROLE_KEYS, *TEXT_KEYS, *CALLS, "weight"}


def _content(value: object, where: str) -> str:
    """Return the text of a message. A list of parts must have text alone; its parts are joined."""
    if not isinstance(value, list):
        return checked_text(value, where)
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise BadRow(f"{where}: expected parts of the type 'text', got {kind!r:.40}")
    return "".join(checked_text(part.get("text"), where) for part in value)
