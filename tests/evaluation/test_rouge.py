"""ROUGE by hand, and equal to the last bit to Google's package on generated texts and on every row of real data."""

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
NOTHING, EVERYTHING = dict.fromkeys(KINDS, Score(0, 0, 0)), dict.fromkeys(KINDS, Score(1, 1, 1))


def scores(reference: str, answer: str, *, use_stemmer: bool = False) -> dict[str, Score]:
    rouge = OURS[use_stemmer]
    return rouge.score([rouge.tokens(reference)], rouge.tokens(answer))


def by_hand(hits: int, *, answer: int, reference: int) -> object:
    """Precision, recall and F of `hits` in common, by the sizes of answer and reference."""
    return pytest.approx((hits / answer, hits / reference, 2 * hits / (answer + reference)))


@pytest.mark.parametrize(
    ("kind", "reference", "answer", "hits", "answer_size", "reference_size"),
    [
        ("rouge1", "the cat sat on the mat", "the cat hit the mat", 4, 5, 6),  # "the" twice, "cat" and "mat"
        ("rouge1", "the cat", "the the the the", 1, 4, 2),  # a word counts only as often as both have it
        ("rouge2", "the cat sat on the mat", "the cat hit the mat", 2, 4, 5),  # "the cat" and "the mat"
        ("rougeL", "the cat sat on the mat", "the cat hit the mat", 4, 5, 6),  # "the cat the mat"
        ("rougeL", "police killed the gunman", "the gunman kill police", 2, 4, 4),  # Lin 2004, section 3.1
        # Lin 2004, section 3.2: w1 w2 and w1 w3 w5 join to w1 w2 w3 w5, in either order of the sentences
        ("rougeLsum", "w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", 4, 10, 5),
        ("rougeLsum", "w1 w2 w3 w4 w5", "w1 w3 w8 w9 w5\nw1 w2 w6 w7 w8", 4, 10, 5),
        ("rougeL", "w1 w2 w3 w4 w5", "w1 w3 w8 w9 w5\nw1 w2 w6 w7 w8", 3, 10, 5),
        (
            "rougeLsum",
            "a b\na c",
            "a x",
            1,
            2,
            4,
        ),  # both sentences have "a" in common with the answer, which has it once
        ("rougeLsum", "a b", "b a\na", 1, 3, 2),  # of "a" and "b", equally long, Google takes "a"; "b" would give 2
    ],
)
def test_a_case_by_hand(
    kind: str, reference: str, answer: str, hits: int, answer_size: int, reference_size: int
) -> None:
    assert scores(reference, answer)[kind] == by_hand(hits, answer=answer_size, reference=reference_size)


@pytest.mark.parametrize("use_stemmer", [False, True])
@pytest.mark.parametrize("empty", ["", " ", "\n\n", "...", "🌱"])
def test_a_text_without_words_scores_0_on_either_side(empty: str, use_stemmer: bool) -> None:
    for reference, answer in (("Water the fern.", empty), (empty, "Water the fern."), (empty, empty)):
        assert scores(reference, answer, use_stemmer=use_stemmer) == NOTHING


def test_a_stemmer_matches_word_forms() -> None:
    assert scores("watering plants", "water plant", use_stemmer=True) == EVERYTHING
    assert scores("watering plants", "water plant") == NOTHING
    assert scores("his use", "hi us", use_stemmer=True) == NOTHING  # too short for stems


def test_each_kind_takes_the_reference_with_the_best_f_and_the_first_of_equal_ones() -> None:
    rouge = OURS[False]

    def best(references: Sequence[str], answer: str) -> dict[str, Score]:
        return rouge.score([rouge.tokens(text) for text in references], rouge.tokens(answer))

    found = best(("c b a", "a b x y", "a b c x x x x x", "x"), "a b c")
    assert found["rouge1"] == Score(1, 1, 1)  # "c b a", which has no pair in common
    assert found["rouge2"] == by_hand(2, answer=2, reference=7)  # "a b c x x x x x": 4/9; "a b x y" has 2/5
    assert found["rougeL"] == by_hand(2, answer=3, reference=4)  # "a b x y": 4/7; "a b c x x x x x" has 6/11
    # F = 2/3 by 1/2 and 1/1 with the one, by 2/2 and 2/4 with the other
    assert best(("a", "a b x x"), "a b")["rouge1"] == by_hand(1, answer=2, reference=1)
    assert best(("a b x x", "a"), "a b")["rouge1"] == by_hand(2, answer=2, reference=4)


@settings(max_examples=1500, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS, st.booleans())
@example(["b b c a"], "c b a\na c b\nb", False)
def test_scores_equal_googles_on_any_texts(references: list[str], answer: str, use_stemmer: bool) -> None:
    rouge, google = OURS[use_stemmer], GOOGLE[use_stemmer]
    tokens = [rouge.tokens(reference) for reference in references]
    assert rouge.score(tokens, rouge.tokens(answer)) == google.score_multi(references, answer)
    for reference, one in zip(references, tokens, strict=True):
        assert rouge.rouge_l(one, rouge.tokens(answer)) == google.score(reference, answer)["rougeL"]


@pytest.mark.parametrize("use_stemmer", [False, True])
@pytest.mark.parametrize(("file", "count"), [("test.jsonl", 500), ("train.jsonl", 2656)])
def test_scores_equal_googles_on_every_real_row(real_data: Path, file: str, count: int, use_stemmer: bool) -> None:
    rows = [json.loads(line) for line in (real_data / "dolly" / file).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == count
    responses = [row["response"] for row in rows]
    copies = [row["context"] or row["instruction"] for row in rows]
    for answers in (copies, responses[1:] + responses[:1]):
        for reference, answer in zip(responses, answers, strict=True):
            assert scores(reference, answer, use_stemmer=use_stemmer) == GOOGLE[use_stemmer].score(reference, answer)


def test_echoing_the_context_scores_the_published_baseline_on_dollyeval(real_data: Path) -> None:
    rows = [json.loads(line) for line in (real_data / "dolly/test.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [
        scores(row["response"], row["context"] or row["instruction"], use_stemmer=True)["rougeL"].fmeasure
        for row in rows
    ]
    assert 100 * sum(found) / len(found) == pytest.approx(21.06, abs=0.005)
