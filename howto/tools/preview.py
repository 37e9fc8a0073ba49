"""`howto preview`: what a model is shown in training, as text and as tokens, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from rich.text import Text
from tokenizers.decoders import ByteLevel
from tqdm import tqdm

from howto.core.config import Params
from howto.core.errors import UserError
from howto.core.paths import BASE, TRAIN
from howto.core.schema import Row, read_rows
from howto.tools.compare_table import new_console
from howto.training.config import train_settings

if TYPE_CHECKING:
    from howto.modeling.chat import Chat
    from howto.modeling.collate import Example

LEARNT, GIVEN = "bold green", "dim"


def preview(params: Params, shown: int) -> None:
    """Print `shown` training rows, from the shortest to the longest, and the lengths of all.

    Raise UserError if the base model or the prepared rows are missing or damaged.
    """
    rows = read_rows(TRAIN, Row)
    from howto.modeling.collate import encode_row
    from howto.modeling.loading import load_chat

    train, chat = train_settings(params)[0], load_chat(BASE)
    bar = tqdm(rows, desc="tokenise", unit="row", disable=None)
    examples = [encode_row(chat, row, max_length=train.max_length) for row in bar]
    used = [n for n, one in enumerate(examples) if one.prompt and not (one.is_shortened and train.too_long == "drop")]
    if not used:
        raise UserError(f"{TRAIN}: no row fits into train.max_length: {train.max_length}. Raise it in params.yaml.")
    used.sort(key=lambda number: len(examples[number]))
    console = new_console()
    for place in range(shown := min(shown, len(used))):
        number = used[place * (len(used) - 1) // max(1, shown - 1)]
        console.print(*_described(chat, rows[number], examples[number]), sep="\n")
    for line in _summary(chat, [examples[number] for number in used], len(rows), train.max_length):
        console.print(line, highlight=False, markup=False)


def _described(chat: Chat, row: Row, example: Example) -> Sequence[Text]:
    """Return one row: a heading, its text, and its tokens. What is learnt is last, and coloured."""
    decode = chat.tokenizer.decode
    prompt, learnt = example.prompt, example.completion
    heading = f"Row {row.id}: {len(prompt)} tokens of prompt, {len(learnt)} learnt"
    if example.is_shortened:
        shorter = chat.shorten(row, len(prompt)) or row
        kept, words = (len(text.split()) for text in (shorter.context, row.context))
        lost = f"{words - kept} of {words} words of its context"
        if turns := len(row.history) - len(shorter.history):
            lost = f"{turns} of {len(row.history)} earlier turns" + (f" and {lost}" if words else "")
        heading += f" (shortened: it lost {lost})"
    before = str(decode(prompt))
    return [
        Text(heading, "bold"),
        Text.assemble((before, GIVEN), (str(decode([*prompt, *learnt])).removeprefix(before), LEARNT)),
        Text.assemble(("tokens of the prompt: ", "bold"), (_pieces(chat, prompt), GIVEN)),
        Text.assemble(("tokens learnt: ", "bold"), (_pieces(chat, learnt), LEARNT)),
        Text(),
    ]


def _pieces(chat: Chat, ids: Sequence[int]) -> str:
    """Return tokens by their names in the vocabulary, but the bytes of byte-level ones as the characters they encode.

    A space is then U+0120 and a line end U+010A, as in the vocabulary. A part of a character keeps its name.
    """
    pieces = chat.tokenizer.convert_ids_to_tokens(list(ids))
    if isinstance(chat.tokenizer.backend_tokenizer.decoder, ByteLevel):
        texts = [str(chat.tokenizer.decode([id])) for id in ids]
        texts = [text.replace(" ", "\u0120").replace("\n", "\u010a") for text in texts]
        pieces = [name if "\ufffd" in text else text for name, text in zip(pieces, texts, strict=True)]
    return " ".join(pieces)


def _summary(chat: Chat, used: Sequence[Example], rows: int, limit: int) -> list[str]:
    sizes = sorted(map(len, used))
    shortened = sum(example.is_shortened for example in used)
    end, *others = (chat.tokenizer.convert_ids_to_tokens(one) for one in [chat.end, *sorted(chat.ends - {chat.end})])
    also = f"; {', '.join(others)} also ends one" if others else ""
    return [
        f"{len(used)} of {rows} training rows: {sizes[0]} to {sizes[-1]} tokens, median {median(sizes):g}, of "
        f"train.max_length {limit}; {shortened} shortened, {rows - len(used)} too long and left out.",
        f"{end} ends an answer and is learnt{also}.",
        *([f"note: {chat.note}"] if chat.note else []),
    ]
