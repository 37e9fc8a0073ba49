"""Near-duplicates are found, and only near-duplicates."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from howto.data.minhash import CANDIDATES, SHINGLE, NearIndex, jaccard, shingle_set, shingles, sign
from tests.support.raw_files import words


def changed(random: Random, start: str, count: int) -> str:
    """The text with `count` of its words reversed."""
    parts = start.split()
    for place in random.sample(range(len(parts)), count):
        parts[place] = parts[place][::-1]
    return " ".join(parts)


def by_hand(one: str, other: str) -> float:
    """The Jaccard index of the runs of five characters, each text followed by four that occur in no text."""
    sets = [{(t + "\0" * (SHINGLE - 1))[i : i + SHINGLE] for i in range(len(t))} for t in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1]) if sets[0] | sets[1] else 1.0


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1, max_size=6))
def test_a_text_has_one_shingle_for_each_character_and_none_of_its_neighbours(texts: list[str]) -> None:
    hashes, offsets = shingles(texts)
    assert offsets.tolist() == np.concatenate([[0], np.cumsum([len(t) for t in texts])]).tolist()
    for number, t in enumerate(texts):
        assert hashes[int(offsets[number]) : int(offsets[number + 1])].tolist() == shingles([t])[0].tolist()
    assert jaccard(shingle_set(texts[0]), shingle_set(texts[-1])) == by_hand(texts[0], texts[-1])


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_pairs_above_the_threshold_are_found_and_none_below_it(threshold: float) -> None:
    random = Random(3)
    texts = []
    for number in range(400):
        start = words(number, 60)
        texts += [start, changed(random, start, random.randint(1, 8))]
    truth = [by_hand(texts[row - 1], texts[row]) >= threshold for row in range(1, len(texts), 2)]
    sets = [shingle_set(t) for t in texts]
    signed = sign(*shingles(texts), threshold)
    index = NearIndex(*signed, threshold, lambda a, b: jaccard(sets[a], sets[b]) >= threshold)
    for row in range(0, len(texts), 2):
        index.add(row)
    found = [index.find(row) for row in range(1, len(texts), 2)]
    missed = sum(other is None for other, near in zip(found, truth, strict=True) if near)
    assert sum(truth) > 50
    assert missed <= 0.02 * sum(truth)
    for place, other in enumerate(found):
        assert other is None or (other == 2 * place and truth[place])


def test_thousands_of_rows_of_one_text_are_not_all_compared() -> None:
    compared = set()

    def is_near(one: int, other: int) -> bool:
        compared.add((one, other))
        return False

    index = NearIndex(*sign(*shingles(["how do i fix a kettle"] * (CANDIDATES + 50)), 0.8), 0.8, is_near)
    for row in range(CANDIDATES + 49):
        index.add(row)
    assert index.find(CANDIDATES + 49) is None
    assert 0 < len(compared) < 100


def test_a_signature_depends_only_on_its_text_and_not_on_the_machine() -> None:
    texts = ["how do i repot a fern", "how do i mend a kettle"]
    bands, sketches = sign(*shingles(texts), 0.8)
    assert bands[:, :3].tolist() == [[2560559556, 3220437260, 1795825744], [709102309, 1786716481, 1994080070]]
    for number, t in enumerate(texts):
        alone = sign(*shingles([t]), 0.8)
        assert (alone[0][0] == bands[number]).all() and (alone[1][0] == sketches[number]).all()
