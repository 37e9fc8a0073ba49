"""Near-duplicates are found, and what is found is near."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from howto.data.minhash import CROWD, RECALL, SHINGLE, NearIndex, bands_for, jaccard, shingle_set, shingles, sign

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdklmnrst"]


def text(random: Random, words: int) -> str:
    return " ".join(random.choice(WORDS) for _ in range(words))


def changed(random: Random, start: str, words: int) -> str:
    parts = start.split()
    for place in random.sample(range(len(parts)), words):
        parts[place] = random.choice(WORDS)
    return " ".join(parts)


def by_hand(one: str, other: str) -> float:
    """The Jaccard index of the runs of five characters, each text followed by four that are in none."""
    sets = [{(t + "\0" * (SHINGLE - 1))[i : i + SHINGLE] for i in range(len(t))} for t in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1]) if sets[0] | sets[1] else 1.0


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=6))
def test_every_text_has_a_shingle_for_each_character_and_none_of_its_neighbours(texts: list[str]) -> None:
    hashes, offsets = shingles(texts)
    assert offsets.tolist() == np.concatenate([[0], np.cumsum([len(t) for t in texts])]).tolist()
    for number, t in enumerate(texts):
        assert hashes[int(offsets[number]) : int(offsets[number + 1])].tolist() == shingles([t])[0].tolist()
    assert jaccard(shingle_set(texts[0]), shingle_set(texts[-1])) == by_hand(texts[0], texts[-1])


def test_the_same_text_is_as_near_as_can_be_and_an_empty_one_is_near_to_none_but_itself() -> None:
    assert jaccard(shingle_set("how to mend"), shingle_set("how to mend")) == 1
    assert jaccard(shingle_set(""), shingle_set("")) == 1
    assert jaccard(shingle_set(""), shingle_set("a")) == 0


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9, 0.95])
def test_the_bands_find_pairs_at_the_threshold_and_pass_over_those_far_below(threshold: float) -> None:
    bands, rows = bands_for(threshold)
    assert 1 - (1 - threshold**rows) ** bands >= RECALL
    assert 1 - (1 - (threshold / 3) ** rows) ** bands < 0.5


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_pairs_above_the_threshold_are_found_and_none_below_it(threshold: float) -> None:
    random = Random(3)
    texts = []
    for _ in range(400):
        start = text(random, 60)
        texts += [start, changed(random, start, random.randint(1, 8))]
    truth = [by_hand(texts[row - 1], texts[row]) >= threshold for row in range(1, len(texts), 2)]
    sets = [shingle_set(t) for t in texts]
    index = NearIndex(sign(*shingles(texts), threshold), threshold, lambda a, b: jaccard(sets[a], sets[b]) >= threshold)
    for row in range(0, len(texts), 2):
        index.add(row)
    found = [index.find(row) for row in range(1, len(texts), 2)]
    missed = sum(other is None for other, near in zip(found, truth, strict=True) if near)
    assert sum(truth) > 50
    assert missed <= 0.02 * sum(truth)
    for place, other in enumerate(found):
        assert other is None or (other == 2 * place and truth[place])


def test_a_row_that_is_alone_in_its_buckets_costs_nothing() -> None:
    random = Random(5)
    texts = [text(random, 30) for _ in range(50)]
    index = NearIndex(sign(*shingles(texts), 0.9), 0.9, lambda _a, _b: pytest.fail("nothing is to be compared"))
    assert not index.crowded.any()


def test_thousands_of_rows_of_one_text_are_found_without_a_look_at_all_of_them() -> None:
    texts = ["how do i mend a kettle"] * (CROWD + 50)
    compared = 0

    def near(_one: int, _other: int) -> bool:
        nonlocal compared
        compared += 1
        return False

    index = NearIndex(sign(*shingles(texts), 0.8), 0.8, near)
    for row in range(len(texts) - 1):
        index.add(row)
    assert index.find(len(texts) - 1) is None
    assert 0 < compared < 100


def test_signatures_are_the_same_whatever_stands_beside_a_text() -> None:
    random = Random(7)
    texts = [text(random, 20) for _ in range(8)]
    together = sign(*shingles(texts), 0.8)
    for number, t in enumerate(texts):
        alone = sign(*shingles([t]), 0.8)
        assert (alone.bands[0] == together.bands[number]).all()
        assert (alone.sketches[0] == together.sketches[number]).all()


def test_signatures_are_those_that_other_machines_make() -> None:
    signatures = sign(*shingles(["how do i repot a fern", "how do i mend a kettle"]), 0.8)
    assert signatures.bands[:, :3].tolist() == [
        [2560559556, 3220437260, 1795825744],
        [709102309, 1786716481, 1994080070],
    ]
