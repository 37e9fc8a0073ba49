"""ROUGE-1, 2, L and Lsum (Lin 2004, aclanthology.org/W04-1013), equal to the last bit to Google's `rouge-score`.

Google's package fills a table of |reference| x |answer| cells in Python, twice, and stems every word of every text.
Here a row of the table is one Python integer with a bit for each column, so a row costs a few operations (Crochemore et
al. 2001, "A fast and practical bit-vector algorithm for the longest common subsequence problem"; Hyyrö 2004,
"Bit-parallel LCS-length computation revisited"). A word is stemmed once in a process.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from sys import intern
from typing import Any, NamedTuple, TypeVar

from howto.evaluation.config import TokenizerName
from howto.evaluation.tokenizers import TOKENIZERS

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

Gram = TypeVar("Gram", str, tuple[str, str])


class Score(NamedTuple):
    """Each in 0..1; `fmeasure` is the harmonic mean of the other two."""

    precision: float
    recall: float
    fmeasure: float


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """The words (or stems) of one text, and their counts. `sentences` are its lines that have words."""

    words: tuple[str, ...]
    sentences: tuple[tuple[str, ...], ...]
    unigrams: Mapping[str, int]
    bigrams: Mapping[tuple[str, str], int]


class Rouge:
    """Scores answers against references, equal to Google's package with the tokenizer `rouge_score`.

    With `use_stemmer` it compares stems (Porter's, for English) of words that consist of a to z and 0 to 9.
    """

    def __init__(self, *, use_stemmer: bool, tokenizer: TokenizerName = "rouge_score") -> None:
        self._tokenizer = TOKENIZERS[tokenizer]
        self._normalize = _stem if use_stemmer else intern

    def tokens(self, text: str) -> Tokens:
        """Prepare a text for scoring, as answer or reference. A newline ends a sentence, a full stop does not."""
        fold, words_in = self._tokenizer
        lines = (tuple(map(self._normalize, words_in(line))) for line in fold(text).split("\n"))
        sentences = tuple(line for line in lines if line)
        words = tuple(chain.from_iterable(sentences))
        return Tokens(words, sentences, Counter(words), Counter(pairwise(words)))

    def rouge_l(self, reference: Tokens, answer: Tokens) -> Score:
        """Return ROUGE-L: the longest common subsequence of words, across sentences. A text without words scores 0."""
        return _score(_lcs_length(reference.words, answer.words), len(reference.words), len(answer.words))

    def score(self, references: Sequence[Tokens], answer: Tokens) -> dict[str, Score]:
        """Return for each of KINDS the score against the reference with the highest F, the first if several have it."""
        scores = [self._score_one(reference, answer) for reference in references]
        return {kind: max((score[kind] for score in scores), key=lambda score: score.fmeasure) for kind in KINDS}

    def _score_one(self, reference: Tokens, answer: Tokens) -> dict[str, Score]:
        sizes = len(reference.words), len(answer.words)
        rouge_l = self.rouge_l(reference, answer)
        one_line = len(reference.sentences) == len(answer.sentences) == 1  # then the union is the LCS itself
        return {
            "rouge1": _score(_overlap(reference.unigrams, answer.unigrams), *sizes),
            "rouge2": _score(_overlap(reference.bigrams, answer.bigrams), *(size - 1 for size in sizes)),
            "rougeL": rouge_l,
            "rougeLsum": rouge_l if one_line else _score(_union_lcs_hits(reference, answer), *sizes),
        }


@cache
def _stem(word: str) -> str:
    """The Porter stem by `rouge_score`, which keeps words of up to three letters. "café" and "can't" have none."""
    return intern("".join(_google_tokenizer().tokenize(word)) if word.isascii() and word.isalnum() else word)


@cache
def _google_tokenizer() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer  # a second: it imports all of nltk

    return DefaultTokenizer(use_stemmer=True)


def _score(hits: int, reference_size: int, answer_size: int) -> Score:
    """Precision, recall and F, in `rouge_score`'s order of operations: another order would round differently."""
    precision, recall = hits / max(answer_size, 1), hits / max(reference_size, 1)
    fmeasure = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return Score(precision, recall, fmeasure)


def _overlap(one: Mapping[Gram, int], other: Mapping[Gram, int]) -> int:
    """The number of common n-grams, each counted as often as both sides have it (Lin 2004, section 2)."""
    return sum(min(one[gram], other[gram]) for gram in one.keys() & other.keys())


def _masks(words: Iterable[str]) -> dict[str, int]:
    """The places of each word: bit n is set for word n."""
    masks: dict[str, int] = {}
    for place, word in enumerate(words):
        masks[word] = masks.get(word, 0) | 1 << place
    return masks


def _lcs_length(reference: Sequence[str], answer: Sequence[str]) -> int:
    """The length of the longest common subsequence (Lin 2004, section 3.1), by Hyyrö 2004.

    Bit n of `row` is 0 where the table's row grows from column n to n + 1, so its zeros count the length. The sum moves
    each such place to the leftmost match in its reach. What it carries past the last column is cut off at the end.
    """
    masks = _masks(answer)
    row = columns = (1 << len(answer)) - 1
    for mask in filter(None, map(masks.get, reference)):
        common = row & mask
        row = (row + common) | (row - common)
    return len(answer) - (row & columns).bit_count()


def _union_lcs_hits(reference: Tokens, answer: Tokens) -> int:
    """The words in the union of each reference sentence's LCS with every sentence of the answer (Lin 2004, 3.2).

    As in ROUGE-1.5.5, a word counts at most as often as the answer has it.
    """
    unions: list[set[int]] = [set() for _ in reference.sentences]
    for sentence in answer.sentences:
        masks = _masks(sentence)
        for words, union in zip(reference.sentences, unions, strict=True):
            rows = [(place, masks[word]) for place, word in enumerate(words) if word in masks]
            union.update(_lcs_places(rows, len(sentence)))
    found = Counter(words[n] for words, union in zip(reference.sentences, unions, strict=True) for n in union)
    return _overlap(found, answer.unigrams)


def _lcs_places(rows: Sequence[tuple[int, int]], columns: int) -> Iterator[int]:
    """Yield the places in the reference of one LCS: of equally long ones, the one that `rouge_score` finds.

    It walks from the table's last cell: diagonally at a match, else left if that cell is greater than the one above,
    else up. Without a match, left is greater exactly where the sum in `_lcs_length` carries. So it leaves a row at the
    first column, from the right, with a match or without a carry. `rows` holds the place and mask of each row with
    a match; the others equal the row above.
    """
    row = (1 << columns) - 1
    exits = []  # for each row: bit n for column n, where column 0 is before the first word
    for _, mask in rows:
        common = row & mask
        total = row + common
        exits.append(mask << 1 | ~(row ^ common ^ total))
        row = total | (row - common)
    column = columns
    for (place, mask), leave in zip(reversed(rows), reversed(exits), strict=True):
        column = (leave & (2 << column) - 1).bit_length() - 1
        if column == 0:
            return
        if mask << 1 >> column & 1:
            yield place
            column -= 1
