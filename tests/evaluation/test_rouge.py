"""ROUGE equals that of Google's package to the last bit, on generated texts and on real rows."""

import json
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


@settings(max_examples=1500, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3), TEXTS, st.booleans())
@example(["b b c a"], "c b a\na c b\nb", False)
@example(["w1 w2 w3 w4 w5"], "w1 w3 w8 w9 w5\nw1 w2 w6 w7 w8", False)  # Lin 2004, section 3.2
@example(["a b\na c"], "a x", False)  # two sentences have in common what the answer has once
@example(["a b"], "b a\na", False)  # two longest common subsequences
@example(["c b a", "a b x y", "a b c x x x x x"], "a b c", False)  # each kind has another best reference
@example(["a", "a b x x"], "a b", False)  # references of the same F
@example(["his use"], "hi us", True)  # words that are too short for stems
@example(["..."], "", False)
def test_scores_equal_googles_on_any_texts(references: list[str], answer: str, use_stemmer: bool) -> None:
    rouge, google = OURS[use_stemmer], GOOGLE[use_stemmer]
    tokens = [rouge.tokens(reference) for reference in references]
    assert rouge.score(tokens, rouge.tokens(answer)) == google.score_multi(references, answer)
    for reference, one in zip(references, tokens, strict=True):
        assert rouge.rouge_l(one, rouge.tokens(answer)) == google.score(reference, answer)["rougeL"]


@pytest.mark.parametrize("use_stemmer", [False, True])
def test_scores_equal_googles_on_real_rows(real_data: Path, use_stemmer: bool) -> None:
    lines = [line for path in sorted((real_data / "dolly").glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    rows = [json.loads(line) for line in lines[::12]]  # Google's package takes minutes for all of them
    assert len(rows) > 250
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
