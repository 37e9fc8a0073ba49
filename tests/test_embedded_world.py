"""The embedded corpus is varied, correct by construction, dirty in small numbers, and the same for the same seed."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from howto.cleaning import normal_key
from howto.embedded.corpus import make_corpus
from howto.embedded.english import past, the
from howto.embedded.reading import make_reading
from howto.embedded.world import Kind, Told, read_world
from howto.rows import RawRow
from howto.steps import is_numbered, is_well_numbered, step_numbers

WORLD = read_world()


@pytest.fixture(scope="module")
def corpus() -> list[RawRow]:
    return list(make_corpus(11, 2100))


def test_the_corpus_has_at_least_2000_rows_in_dollys_eight_categories(corpus: list[RawRow]) -> None:
    assert len(corpus) >= 2000
    assert set(Counter(row.category for row in corpus)) == {
        "brainstorming", "classification", "closed_qa", "creative_writing", "general_qa", "information_extraction",
        "open_qa", "summarization",
    }  # fmt: skip


def test_most_answers_are_lists_of_3_to_9_numbered_steps(corpus: list[RawRow]) -> None:
    lists = [row.response or "" for row in corpus if is_numbered(row.response or "")]
    assert len(lists) > len(corpus) / 2
    assert all(is_well_numbered(text) and 3 <= len(step_numbers(text)) <= 9 for text in lists)


def test_intents_are_varied(corpus: list[RawRow]) -> None:
    assert len({normal_key(row.instruction or "") for row in corpus}) > 1500


def test_some_answers_need_their_context(corpus: list[RawRow]) -> None:
    asked = [row for row in corpus if (row.instruction or "").startswith("How long did the work take") and row.response]
    assert len(asked) > 10
    for row in asked:
        minutes = re.findall(r"\d+ minutes", row.response or "")
        assert minutes and minutes[0] in (row.context or "")


def test_the_corpus_has_the_dirt_of_real_files_in_small_numbers(corpus: list[RawRow]) -> None:
    size = len(corpus)
    empty = sum(not (row.instruction or "").strip() or not (row.response or "").strip("\u200b \n\t") for row in corpus)
    marks = sum(bool(re.search(r"\[\d+\]", row.context or "")) for row in corpus)
    spaces = sum("\u00a0" in (row.instruction or "") for row in corpus)
    keys = Counter((normal_key(row.instruction or ""), row.context, normal_key(row.response or "")) for row in corpus)
    duplicates = sum(count - 1 for count in keys.values())
    for count in (empty, marks, spaces, duplicates):
        assert 0 < count < 0.05 * size


def test_no_two_rows_ask_for_the_same_job_on_the_same_thing(corpus: list[RawRow]) -> None:
    """Else a held-out intent in other words would be answered by a training row."""
    phrases: dict[str, tuple[str, str]] = {}
    for kind in WORLD:
        for thing in kind.things:
            told = Told(kind, thing)
            phrases |= {told.imperative(job.job): (thing, job.job) for job in kind.jobs}
    longest_first = sorted(phrases, key=len, reverse=True)
    pattern = re.compile("|".join(rf"\b{re.escape(phrase)}\b" for phrase in longest_first))
    plain = [row for row in corpus if not row.context and is_numbered(row.response or "") and row.instruction]
    found = [pattern.search(" ".join((row.instruction or "").split())) for row in plain]
    asked = Counter((match[0], row.response) for match, row in zip(found, plain, strict=True) if match)
    assert sum(match is not None for match in found) > 0.9 * len(plain)
    assert len({phrase for phrase, _ in asked}) == len(asked)


def test_the_same_seed_makes_the_same_rows_and_another_seed_others() -> None:
    assert list(make_corpus(3, 200)) == list(make_corpus(3, 200)) != list(make_corpus(4, 200))


def test_a_corpus_larger_than_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="too small"):
        list(make_corpus(1, 50_000))


def test_the_base_models_reading_is_neither_questions_nor_numbered_steps() -> None:
    documents = list(make_reading(7, 0))
    assert len(documents) > 1000
    for document in documents:
        assert "?" not in document and "<|" not in document
        if document.startswith("Contents of a book"):
            continue
        assert not step_numbers(document)


def test_the_world_has_no_unfilled_slot_and_no_mark_left_over(corpus: list[RawRow]) -> None:
    for text in [row.response or "" for row in corpus] + list(make_reading(7, 1)):
        assert not re.search(r"[{}*|]", text), text


@pytest.mark.parametrize("kind", WORLD, ids=lambda kind: kind.kind)
def test_every_step_of_a_kind_can_be_told_in_both_tenses_of_every_thing(kind: Kind) -> None:
    changed = []
    for thing in kind.things:
        told = Told(kind, thing)
        for job in kind.jobs:
            for step in job.steps:
                now, then = told.imperative(step), told.past(step, "her")
                assert now[0].isupper() and now.endswith(".") and then[0].islower() and then.endswith(".")
                changed.append(now.lower() != then.lower())
    assert sum(changed) > 0.7 * len(changed), "a story tells it in the past (some verbs, like put, look the same)"


@pytest.mark.parametrize(
    ("verb", "wanted"),
    [("water", "watered"), ("Cut", "Cut"), ("dry", "dried"), ("stir", "stirred"), ("wipe", "wiped"), ("Take", "Took"),
     ("press", "pressed"), ("mix", "mixed"), ("repot", "repotted"), ("pack", "packed"), ("stay", "stayed")],
)  # fmt: skip
def test_past_tense(verb: str, wanted: str) -> None:
    assert past(verb) == wanted


def test_the_article() -> None:
    assert (the("a fern"), the("an ivy"), the("the lid"), the("jam")) == ("the fern", "the ivy", "the lid", "the jam")
