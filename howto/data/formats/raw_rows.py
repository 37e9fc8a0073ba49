"""Read the texts of one raw row, or say what is wrong with it."""

import json
from typing import Any, NamedTuple

from howto.data.formats.conversations import (
    Message,
    checked_text,
    is_conversation,
    read_exchanges,
    read_messages,
    split_messages,
)
from howto.data.formats.row_formats import BadRow, RowFormat, RowFormats

LONGEST_ROW = 16 << 20  # bytes

Values = dict[str | None, Any]  # of a row, by column; there is none for None


class RawTexts(NamedTuple):
    """The texts of a row; "" for one that the row does not have.

    `references` are more answers to score against. `system` is the row's own system message. `history` has the turns
    before the instruction: user, assistant, user, ... `source` names where a row that `prepare` wrote is from.
    """

    instruction: str
    context: str
    response: str
    category: str
    references: tuple[str, ...]
    system: str = ""
    history: tuple[str, ...] = ()
    source: str = ""


def parse_row(line: bytes, formats: RowFormats) -> tuple[RawTexts, RowFormat]:
    """Return the texts of a row that is given as a JSON object, and its format.

    Raise BadRow if the line is too long, not UTF-8 or not a JSON object, a column is missing, or a value is neither
    text nor a conversation.
    """
    if len(line) > LONGEST_ROW:
        raise BadRow(f"the row is longer than {LONGEST_ROW >> 20} MiB")
    try:
        row = _DECODER.decode(line.decode())
    except json.JSONDecodeError as error:
        raise BadRow(f"not a JSON object ({error.msg} at character {error.pos + 1})") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, a number with thousands of digits, deeply nested lists
        raise BadRow(f"not a JSON object ({error})") from None
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, got {row!r:.40}")
    found = formats.of(tuple(row))
    if (
        found.messages
        or found.system
        or found.history
        or any(is_conversation(row.get(name)) for name in (found.instruction, found.response))
    ):
        unread: set[str] = set()
        system, turns = _conversation(row, found, unread, answered=formats.answered)
        found = found._replace(unread=(*found.unread, *sorted(unread))) if unread else found
        *history, instruction, response = turns if formats.answered else (*turns, "")
    else:
        system, history = "", []
        instruction, response = (_text(row, name) for name in (found.instruction, found.response))
    references = row.get(found.references) or []
    if not isinstance(references, list):
        raise BadRow(f"column {found.references!r}: expected a list of texts, got {references!r:.40}")
    others = tuple(checked_text(text, f"column {found.references!r}") for text in references)
    context, category, source = (_text(row, name) for name in (found.context, found.category, found.source))
    return RawTexts(instruction, context, response, category, others, system, tuple(history), source), found


def _text(row: Values, name: str | None) -> str:
    """Return the text in a column, or "" if there is none."""
    return "" if (value := row.get(name)) is None else checked_text(value, f"column {name!r}")


def _conversation(row: Values, found: RowFormat, unread: set[str], *, answered: bool) -> tuple[str, list[str]]:
    """Return the system message, and the turns with the intent and, if it is `answered`, its answer at the end."""
    messages: list[Message] = []
    if found.history and row[found.history]:
        messages = read_exchanges(row[found.history], f"column {found.history!r}", unread)
    for name, role in ((found.messages, ""), (found.instruction, "user"), (found.response, "assistant")):
        if name and (not role or is_conversation(row[name])):
            messages += read_messages(row[name], f"column {name!r}", unread)
        elif name:
            messages.append((role, _text(row, name)))
    if (system := _text(row, found.system)) and messages[:1] != [("system", system)]:
        messages = [("system", system), *messages]
    return split_messages(messages, answered=answered)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise BadRow("a key occurs twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
