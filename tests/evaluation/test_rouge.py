"""ROUGE by hand, and equal to the last bit to Google's package on made-up texts and on every row of real data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from howto.evaluation.rouge import KINDS, Rouge, Score

GOOGLE = {stemmer: rouge_scorer.RougeScorer(KINDS, use_stemmer=stemmer) for stemmer in (False, True)}
OURS = {stemmer: Rouge(use_stemmer=stemmer) for stemmer in (False, True)}

# Few words, so that texts share them and a longest common subsequence is rarely the only one. In lower case "İ" and the
# Kelvin sign "\u212a" hold an ASCII letter, and the last letter of "ΟΔΟΣ" depends on whether the word ends there.
WORDS = ["a", "b", "c", "a", "b", "c", "B", "water", "Watering", "watered", "use", "us", "x1", "don't", "Straße", "İ"]
WORDS += ["\u212aelvin", "ΟΔΟΣ", "e\u0301", "ﬁne", "🌱", "٣", "\ud800"]
ENDS = [" ", " ", " ", " ", "\n", "\n", "\n\n", " \n \n", "\r\n", "\u2028", "\x0b", ". ", ", ", "-", "_", "\t", ""]
LETTERS = st.lists(st.sampled_from(["a ", "b ", "c ", "d ", "\n"]), max_size=40).map("".join)
MIXED = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(ENDS)), max_size=30).map(
    lambda pieces: "".join(word + end for word, end in pieces)
)
TEXTS = LETTERS | MIXED | st.text(max_size=20) | st.sampled_from(["", " ", "\n", "\n \n", "...", "🌱"])


def scores(reference: str, answer: str, *, use_stemmer: bool = False) -> dict[str, Score]:
    rouge = OURS[use_stemmer]
    return rouge.score([rouge.tokens(reference)], rouge.tokens(answer))


def by_hand(hits: int, *, answer: int, reference: int) -> object:
    """Precision, recall and F, for `hits` common to so many of the answer and so many of the reference."""
    return pytest.approx((hits / answer, hits / reference, 2 * hits / (answer + reference)))


def test_rouge_1_counts_common_words() -> None:
    # "the" twice, "cat" and "mat": 4 of the answer's 5 and of the reference's 6
    found = scores("the cat sat on the mat", "the cat hit the mat")["rouge1"]
    assert found == by_hand(4, answer=5, reference=6)
    assert found.fmeasure == pytest.approx(8 / 11)  # 2 * 4/5 * 4/6 / (4/5 + 4/6)


def test_rouge_1_counts_a_word_only_as_often_as_both_have_it() -> None:
    assert scores("the cat", "the the the the")["rouge1"] == by_hand(1, answer=4, reference=2)


def test_rouge_2_counts_common_pairs_of_neighbours() -> None:
    # "the cat" and "the mat" of: the cat, cat hit, hit the, the mat; the cat, cat sat, sat on, on the, the mat
    found = scores("the cat sat on the mat", "the cat hit the mat")["rouge2"]
    assert found == by_hand(2, answer=4, reference=5)
    assert found.fmeasure == pytest.approx(4 / 9)  # 2 * 2/4 * 2/5 / (2/4 + 2/5)


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    # "the cat the mat"
    assert scores("the cat sat on the mat", "the cat hit the mat")["rougeL"] == by_hand(4, answer=5, reference=6)
    # "the gunman": Lin 2004, section 3.1, where the candidate "police kill the gunman" has 3 and this one 2
    assert scores("police killed the gunman", "the gunman kill police")["rougeL"] == by_hand(2, answer=4, reference=4)


def test_rouge_lsum_joins_what_each_sentence_of_the_answer_has_in_common_with_one_of_the_reference() -> None:
    # Lin 2004, section 3.2: w1 w2 and w1 w3 w5 join to w1 w2 w3 w5, so that recall is 4/5; the answer has 10 words
    assert scores("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5")["rougeLsum"] == by_hand(4, answer=10, reference=5)
    # in the other order the texts as wholes have w1 w3 w5 in common, and the union of the sentences is as before
    found = scores("w1 w2 w3 w4 w5", "w1 w3 w8 w9 w5\nw1 w2 w6 w7 w8")
    assert found["rougeLsum"] == by_hand(4, answer=10, reference=5)
    assert found["rougeL"] == by_hand(3, answer=10, reference=5)


def test_rouge_lsum_counts_a_word_only_as_often_as_the_answer_has_it() -> None:
    # "a" is common to both sentences of the reference and the answer, which has it once
    assert scores("a b\na c", "a x")["rougeLsum"] == by_hand(1, answer=2, reference=4)


def test_rouge_lsum_takes_googles_choice_of_equally_long_subsequences() -> None:
    # Of "a b" and "b a", "a" and "b" are equally long: Google takes "a", which "a" adds nothing to. With "b" it were 2.
    assert scores("a b", "b a\na")["rougeLsum"] == by_hand(1, answer=3, reference=2)


@pytest.mark.parametrize("use_stemmer", [False, True])
@pytest.mark.parametrize("empty", ["", " ", "\n\n", "...", "🌱"])
def test_a_text_without_words_scores_0_on_either_side(empty: str, use_stemmer: bool) -> None:
    nothing = dict.fromkeys(KINDS, Score(0, 0, 0))
    assert scores("Water the fern.", empty, use_stemmer=use_stemmer) == nothing
    assert scores(empty, "Water the fern.", use_stemmer=use_stemmer) == nothing
    assert scores(empty, empty, use_stemmer=use_stemmer) == nothing


@pytest.mark.parametrize("text", ["Water the fern.", "1. Water the fern.\n2. Water the fern.\n\n3. Wait.", "Straße 🌱"])
def test_the_reference_itself_scores_1(text: str) -> None:
    assert scores(text, text, use_stemmer=True) == dict.fromkeys(KINDS, Score(1, 1, 1))


def test_a_stemmer_matches_word_forms() -> None:
    assert scores("watering plants", "water plant", use_stemmer=True) == dict.fromkeys(KINDS, Score(1, 1, 1))
    assert scores("watering plants", "water plant") == dict.fromkeys(KINDS, Score(0, 0, 0))
    assert scores("his use", "hi us", use_stemmer=True) == dict.fromkeys(KINDS, Score(0, 0, 0))  # too short for stems


def test_of_several_references_each_kind_takes_the_one_with_the_best_f() -> None:
    rouge = OURS[False]
    answer = rouge.tokens("a b c")
    found = rouge.score([rouge.tokens(text) for text in ("c b a", "a b x y", "a b c x x x x x", "x")], answer)
    assert found["rouge1"] == Score(1, 1, 1)  # "c b a", which has no pair in common
    assert found["rouge2"] == by_hand(2, answer=2, reference=7)  # "a b c x x x x x": 4/9; "a b x y" has 2/5
    assert found["rougeL"] == by_hand(2, answer=3, reference=4)  # "a b x y": 4/7; "a b c x x x x x" has 6/11
    assert found["rougeLsum"] == found["rougeL"]


def test_of_equally_good_references_the_first_counts() -> None:
    rouge = OURS[False]
    answer, short, long = (rouge.tokens(text) for text in ("a b", "a", "a b x x"))
    # F = 2/3 by 1/2 and 1/1 with the one, by 2/2 and 2/4 with the other
    assert rouge.score([short, long], answer)["rouge1"] == by_hand(1, answer=2, reference=1)
    assert rouge.score([long, short], answer)["rouge1"] == by_hand(2, answer=2, reference=4)


def test_scoring_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        OURS[False].score([], OURS[False].tokens("a"))


@settings(max_examples=1500, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS, st.booleans())
@example(["b b c a"], "c b a\na c b\nb", False)
def test_scores_equal_googles_on_any_texts(references: list[str], answer: str, use_stemmer: bool) -> None:
    rouge, google = OURS[use_stemmer], GOOGLE[use_stemmer]
    tokens = [rouge.tokens(reference) for reference in references]
    assert rouge.score(tokens, rouge.tokens(answer)) == google.score_multi(references, answer)
    for reference, one in zip(references, tokens, strict=True):
        expected = google.score(reference, answer)
        assert rouge.score([one], rouge.tokens(answer)) == expected
        assert rouge.rouge_l(one, rouge.tokens(answer)) == expected["rougeL"]


@pytest.mark.parametrize("use_stemmer", [False, True])
@pytest.mark.parametrize(("file", "count"), [("test.jsonl", 500), ("train.jsonl", 2656)])
def test_scores_equal_googles_on_every_real_row(real_data: Path, file: str, count: int, use_stemmer: bool) -> None:
    rows = [json.loads(line) for line in (real_data / "dolly" / file).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == count
    responses = [row["response"] for row in rows]
    copies = [row["context"] or row["instruction"] for row in rows]
    check_pairs(responses, copies, use_stemmer)
    check_pairs(responses, responses[1:] + responses[:1], use_stemmer)


def check_pairs(references: Sequence[str], answers: Sequence[str], use_stemmer: bool) -> None:
    rouge, google = OURS[use_stemmer], GOOGLE[use_stemmer]
    for reference, answer in zip(references, answers, strict=True):
        assert rouge.score([rouge.tokens(reference)], rouge.tokens(answer)) == google.score(reference, answer)
