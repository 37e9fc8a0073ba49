"""The project's own rows: each has the form that data/howto/README.md promises, and no two ask the same."""

import json
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from howto.core.step_lists import step_numbers
from tests.conftest import ROOT

DOMAINS = sorted(path.stem for path in (ROOT / "data/howto").glob("*.jsonl"))
BANNED = re.compile(
    r"!|\*\*|https?:|www\.|\b(?:please|enjoy|simply|just|make sure to|don't forget|remember to|here are|as an ai|"
    r"in conclusion|certainly|consult a professional|we|let's|(?-i:I))\b",
    re.IGNORECASE,
)


class HowTo(NamedTuple):
    at: str
    instruction: str
    context: str
    response: str
    category: str

    @property
    def steps(self) -> list[str]:
        return [line.split(" ", 1)[1] for line in self.response.split("\n")]


def read(domain: str) -> list[HowTo]:
    lines = (ROOT / f"data/howto/{domain}.jsonl").read_text(encoding="utf-8").splitlines()
    return [HowTo(at=f"{domain}.jsonl:{number}", **json.loads(line)) for number, line in enumerate(lines, 1)]


ROWS = {domain: read(domain) for domain in DOMAINS}
ALL = [row for rows in ROWS.values() for row in rows]


def wrong(rows: list[HowTo], is_right: Callable[[HowTo], bool]) -> list[str]:
    return [row.at for row in rows if not is_right(row)]


def test_there_are_twelve_domains_of_sixty_rows_each_with_a_context_in_every_fifth() -> None:
    assert len(DOMAINS) == 12
    for domain, rows in ROWS.items():
        assert len(rows) == 60 and {row.category for row in rows} == {domain}
        assert [bool(row.context) for row in rows] == [number % 5 == 0 for number in range(1, 61)]


def test_a_response_is_4_to_9_numbered_steps_of_at_most_22_words_and_nothing_else() -> None:
    assert not wrong(ALL, lambda row: step_numbers(row.response) == list(range(1, row.response.count("\n") + 2)))
    assert not wrong(ALL, lambda row: 4 <= len(row.steps) <= 9)
    assert not wrong(ALL, lambda row: all(3 <= len(step.split()) <= 22 for step in row.steps))
    assert not wrong(ALL, lambda row: all(step[0].isupper() and step.endswith(".") for step in row.steps))
    assert not wrong(ALL, lambda row: not BANNED.search(row.response))


def test_questions_have_4_to_28_words_and_contexts_30_to_90() -> None:
    assert not wrong(ALL, lambda row: 4 <= len(row.instruction.split()) <= 28)
    assert not wrong(ALL, lambda row: not row.context or 30 <= len(row.context.split()) <= 90)
    texts = [text for row in ALL for text in row[1:]]
    assert not [text for text in texts if text != text.strip() or "  " in text or "\t" in text]


@pytest.mark.parametrize("column", ["instruction", "response"])
def test_no_two_rows_are_near_duplicates(column: str) -> None:
    """The Jaccard index of the sets of 5-character runs of two questions, or of two answers, is at most 0.6."""
    texts = [" ".join(re.findall(r"\w+", getattr(row, column).lower())) for row in ALL]
    runs = CountVectorizer(analyzer="char", ngram_range=(5, 5), binary=True, dtype=np.int32)
    has = runs.fit_transform(texts)  # [rows, runs]
    common = (has @ has.T).toarray()
    sizes = common.diagonal()
    index = np.triu(common / (sizes[:, None] + sizes - common), k=1)
    assert not [(ALL[one].at, ALL[two].at) for one, two in np.argwhere(index > 0.6)]


def syllables(word: str) -> int:
    groups = len(re.findall(r"[aeiouy]+", word))
    silent = word.endswith("e") and not word.endswith("le") and groups > 1
    return max(1, groups - silent)


def test_the_steps_of_each_domain_can_be_read_at_the_age_of_14() -> None:
    """The Flesch-Kincaid grade (Kincaid et al. 1975), with a step as a sentence, is at most 8."""
    for domain, rows in ROWS.items():
        words = [word for row in rows for step in row.steps for word in re.findall(r"[a-z']+", step.lower())]
        sentences = sum(len(row.steps) for row in rows)
        grade = 0.39 * len(words) / sentences + 11.8 * sum(map(syllables, words)) / len(words) - 15.59
        assert grade <= 8, f"{domain}: grade {grade:.1f}"
