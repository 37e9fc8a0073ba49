"""A stop string ends an answer at the same token, with the same text, as if the whole answer were decoded each time."""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from howto.inference.stop_strings import StopStrings

TEXT = "1. Open the tap.\n\n2. Water the fern — “slowly”…  Then: 水をやる 🙂👩‍🌾🙂🙂 naïve café END"


@pytest.fixture(params=["tiny", "tinyllama"])
def tokenizer(tiny: Path, request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    if request.param == "tinyllama":
        return request.getfixturevalue("tinyllama")
    return AutoTokenizer.from_pretrained(tiny / "model")


def cut_in_full_text(of: PreTrainedTokenizerBase, strings: list[str], tokens: list[int]) -> str | None:
    """Do as `StopStrings.cut`, but decode all tokens."""
    text = of.decode(tokens, skip_special_tokens=True)
    found = [place for place in map(text.find, strings) if place >= 0]
    return text[: min(found)] if found else None


def end(cut: Callable[[list[int]], str | None], tokens: list[int]) -> tuple[int, str] | None:
    """The number of tokens and the text of an answer that a stop string ends."""
    texts = ((count, cut(tokens[:count])) for count in range(1, len(tokens) + 1))
    return next(((count, text) for count, text in texts if text is not None), None)


def random_tokens(of: PreTrainedTokenizerBase, chance: random.Random) -> list[int]:
    """Pieces of text, any tokens of the vocabulary, bytes, special tokens and unused ids."""
    of_text, of_bytes = of.encode(TEXT, add_special_tokens=False), range(3, 259)
    tokens: list[int] = []
    while len(tokens) < 60:
        start = chance.randrange(len(of_text))
        tokens += chance.choice([
            *[of_text[start : start + chance.randint(1, 40)]] * 3,
            chance.choices(range(len(of)), k=chance.randint(1, 8)),
            chance.choices(of_bytes, k=chance.randint(1, 4)),
            chance.choices([*of.all_special_ids, len(of) + 5], k=chance.randint(1, 30)),
        ])  # fmt: skip
    return tokens


def test_an_answer_ends_where_its_full_text_has_a_stop_string(tokenizer: PreTrainedTokenizerBase) -> None:
    chance, late = random.Random(0), 0
    for _ in range(300):
        tokens = random_tokens(tokenizer, chance)
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        starts = [chance.randrange(max(1, len(text))) for _ in range(2)]
        strings = [
            " END",
            "🙂🙂",
            "\n\n",
            "no such text",
            *(text[at : at + chance.randint(1, 12)] or "x" for at in starts),
        ]
        strings = chance.sample(strings, chance.randint(1, 3))
        expected = end(partial(cut_in_full_text, tokenizer, strings), tokens)
        assert end(StopStrings(tokenizer, strings).cut, tokens) == expected, (tokens, strings)
        late += expected is not None and expected[0] > 30
    assert late > 30  # many strings end beyond the tokens that are decoded each time


def test_few_tokens_make_the_answer_be_decoded(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokenizer.encode("Open the tap, and water the fern slowly.\n" * 100, add_special_tokens=False)
    decode, sizes = tokenizer.decode, list[int]()

    def counted(ids: list[int], **options: Any) -> Any:
        sizes.append(len(ids))
        return decode(ids, **options)

    monkeypatch.setattr(tokenizer, "decode", counted)
    assert end(StopStrings(tokenizer, ["\n\nQ"]).cut, tokens) is None
    assert len(tokens) > 500 and sum(size > 1 for size in sizes) < len(tokens) / 100
