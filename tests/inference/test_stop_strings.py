"""A stop string ends an answer at the same token, with the same text, as if the whole answer were decoded each time."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from howto.inference.stop_strings import StopStrings

TEXT = "1. Open the tap.\n\n2. Water the fern — “slowly”…  Then: 水をやる 🙂👩‍🌾🙂🙂 naïve café END"


@pytest.fixture(scope="module")
def tiny_tokenizer(tiny: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny / "model")


class Counted:
    """A tokenizer, and how many tokens it decoded."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self.count = tokenizer, 0
        self.clean_up_tokenization_spaces = tokenizer.clean_up_tokenization_spaces

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        self.count += len(tokens)
        return str(self._tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))


def ends_by_the_whole_text(
    tokenizer: PreTrainedTokenizerBase, strings: list[str], tokens: list[int]
) -> tuple[int, str] | None:
    """How many tokens an answer has, and its text: all tokens so far are decoded after each."""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count], skip_special_tokens=True)
        found = [place for place in map(text.find, strings) if place >= 0]
        if found:
            return count, text[: min(found)]
    return None


def ends(tokenizer: PreTrainedTokenizerBase, strings: list[str], tokens: list[int]) -> tuple[int, str] | None:
    stop_strings, starts = StopStrings(tokenizer, strings), [0]
    for count in range(1, len(tokens) + 1):
        text = stop_strings.cut(tokens[:count], starts)
        if text is not None:
            return count, text
    return None


def random_tokens(tokenizer: PreTrainedTokenizerBase, chance: random.Random) -> list[int]:
    """Pieces of text, any tokens of the vocabulary, bytes, special tokens, and numbers that are no token."""
    text_tokens = tokenizer.encode(TEXT, add_special_tokens=False)
    byte_tokens = [*range(3, 259)]  # of either tokenizer
    tokens: list[int] = []
    while len(tokens) < 60:
        kind = chance.randrange(6)
        if kind < 3:
            start = chance.randrange(len(text_tokens))
            tokens += text_tokens[start : start + chance.randint(1, 40)]
        elif kind == 3:
            tokens += chance.choices(range(len(tokenizer)), k=chance.randint(1, 8))
        elif kind == 4:
            tokens += chance.choices(byte_tokens, k=chance.randint(1, 4))
        else:
            tokens += chance.choices([*tokenizer.all_special_ids, len(tokenizer) + 5], k=chance.randint(1, 30))
    return tokens


def random_strings(text: str, chance: random.Random) -> list[str]:
    """Return a few strings, some of which occur in the text."""
    strings = [" END", "🙂🙂", "\n\n", "no such text"]
    for _ in range(2):
        start = chance.randrange(max(1, len(text)))
        strings.append(text[start : start + chance.randint(1, 12)] or "x")
    return chance.sample(strings, chance.randint(1, 3))


@pytest.mark.parametrize("name", ["tiny_tokenizer", "tinyllama"])
def test_an_answer_ends_where_its_whole_text_holds_a_stop_string(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    chance = random.Random(0)
    late = 0
    for _ in range(400):
        tokens = random_tokens(tokenizer, chance)
        strings = random_strings(tokenizer.decode(tokens, skip_special_tokens=True), chance)
        wanted = ends_by_the_whole_text(tokenizer, strings, tokens)
        assert ends(tokenizer, strings, tokens) == wanted, (tokens, strings)
        late += wanted is not None and wanted[0] > 30
    assert late > 40  # many strings end beyond the tokens that are decoded each time


@pytest.mark.parametrize("name", ["tiny_tokenizer", "tinyllama"])
@pytest.mark.parametrize("string", [" END", "END", "fé E", "🙂🙂", "\n\n2", "た", "…  T"])
def test_a_stop_string_may_span_tokens_and_characters_of_several_bytes(
    name: str, string: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = request.getfixturevalue(name)
    before = "word " * 40
    tokens = tokenizer.encode(f"{before}{string} and more", add_special_tokens=False)
    found = ends(tokenizer, [string], tokens)
    assert found == ends_by_the_whole_text(tokenizer, [string], tokens)
    assert found is not None and found[1].strip() == before.strip()


@pytest.mark.parametrize("name", ["tiny_tokenizer", "tinyllama"])
def test_a_token_is_decoded_a_bounded_number_of_times(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    tokens = tokenizer.encode(TEXT * 20, add_special_tokens=False)
    counted = Counted(tokenizer)
    assert ends(counted, ["no such"], tokens) is None
    assert len(tokens) > 500 and counted.count < 25 * len(tokens)
