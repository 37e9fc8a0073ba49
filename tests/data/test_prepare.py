"""`prepare` as a whole: nothing vanishes, nothing leaks, and no row moves."""

import random
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stages.prepare
from howto.data.clean_text import normal_key
from howto.data.config import Prepare
from howto.data.minhash import jaccard, shingle_set
from tests.support.raw_files import PARAMS, SPLITS, Prepared, Raw, jsonl, prepare, read_jsonl, with_params, words

OWN_FORMAT = {"instruction": "input", "context": "context", "response": "output", "category": "category"}
SOURCE = "data/raw/rows/made.jsonl"
FEW = settings(deadline=None, max_examples=60)


def prepared(
    rows: Sequence[Raw], params: Prepare = PARAMS, test: Sequence[Raw] = (), folder: Path | None = None
) -> Prepared:
    """What `prepare` makes of the rows, and of a given test if there is one."""
    files = {"rows/made.jsonl": jsonl(rows)} | ({"test/made.jsonl": jsonl(test)} if test else {})
    with tempfile.TemporaryDirectory() as name:
        return prepare(folder or Path(name), files, params)


def raw(intent: str, response: str = "Do it.", context: str = "", category: str = "open_qa") -> Raw:
    return {"instruction": intent, "context": context, "response": response, "category": category}


def plain(count: int, start: int = 0) -> list[Raw]:
    """Rows that have nothing to do with each other."""
    return [raw(words(n, 6), f"{words(n, 8)[-11:]} {n}.") for n in range(start, start + count)]


def intent_of(row: Raw) -> str:
    text: str = row["input"]
    return text.removesuffix(row["context"]).strip()


def split_of(made: Prepared) -> dict[tuple[str, ...], str]:
    """The split of each row that is used, by the normal keys of its texts."""
    keys = ((name, (intent_of(row), row["context"], row["output"])) for name in SPLITS for row in made.splits[name])
    return {tuple(map(normal_key, texts)): name for name, texts in keys}


def assert_nothing_leaks(made: Prepared) -> None:
    """No context, intent or near-duplicate intent is in two splits."""
    where: dict[tuple[str, str], set[str]] = {}
    for name, rows in made.splits.items():
        for row in rows:
            where.setdefault(("intent", normal_key(intent_of(row))), set()).add(name)
            if row["context"]:
                where.setdefault(("context", normal_key(row["context"])), set()).add(name)
    assert [key for key, splits in where.items() if len(splits) > 1] == []
    intents = [(shingle_set(key), splits) for (kind, key), splits in where.items() if kind == "intent"]
    for number, (one, split) in enumerate(intents):
        assert not [other for other, another in intents[:number] if split != another and jaccard(one, other) >= 0.8]


def test_every_rejected_row_is_listed_with_line_reason_and_text_and_each_reason_can_be_switched_off() -> None:
    good = plain(60)
    text = "The very long context of this row."
    bad = {
        "empty_instruction": raw("", "An answer."),
        "empty_response": {"instruction": "How do I wait?", "response": None},
        "repeated_context": raw("Sum it up.", text, text),
        "duplicate": {**good[4], "instruction": good[4]["instruction"].upper() + "!"},
        "too_short": raw("Short?", "No"),
        "too_long": raw("Long?", "x" * 5001),
    }
    made = prepared([*good, *bad.values()], with_params(reject={"min_characters": 3, "max_characters": 5000}))
    found = {(row["source"], row["reason"], row.get("detail"), intent_of(row["row"])) for row in made.rejected}
    detail = {"duplicate": f"repeats {SOURCE}:5"}
    expected = enumerate(bad.items(), 61)
    assert found == {(f"{SOURCE}:{n}", why, detail.get(why), row["instruction"]) for n, (why, row) in expected}
    assert made.metrics["rows"] == {"raw": 66, "kept": 60, "rejected": 6}
    assert {reason for reason, count in made.metrics["rejected"].items() if count} == bad.keys()
    assert sum(made.metrics["splits"].values()) == sum(c["all"] for c in made.metrics["categories"].values()) == 60

    off = with_params(reject={"empty": False, "repeated_context": False}, duplicates={"exact": False, "near": None})
    assert len(prepared([*good, *bad.values()], off).kept) == 66


def test_cleaned_rows_are_counted_by_step_and_stay_as_they_are_if_it_is_off() -> None:
    dirty = [raw("a\u00a0b?", "one\r\ntwo"), raw("c?", "It is so.[3] And so.", "It is so.[3] So it is.")]
    rows = [*plain(40), *dirty, raw("d  e?", "f")]
    cleaned = prepared(rows).metrics["cleaned"]
    expected = {"line_ends": 1, "invisible_characters": 1, "reference_marks": 1, "blanks": 1}
    assert cleaned == {**dict.fromkeys(cleaned, 0), **expected}
    made = prepared(rows, with_params(clean=dict.fromkeys(cleaned, False)))
    assert set(made.metrics["cleaned"].values()) == {0}
    assert {"one\r\ntwo", "It is so.[3] And so."} <= {row["output"] for row in made.kept}


def test_procedural_rows_are_counted_and_the_others_can_be_rejected() -> None:
    rows = [{**row, "response": "1. Open it.\n2. Close it."} for row in plain(50)] + plain(30, start=100)
    assert prepared(rows).metrics["procedural"] == 50
    metrics = prepared(rows, with_params(reject={"not_procedural": True})).metrics
    assert metrics["procedural"] == metrics["rows"]["kept"] == 50 and metrics["rejected"]["not_procedural"] == 30


def test_lengths_are_those_of_the_rows_that_are_kept(tmp_path: Path) -> None:
    rows = [raw(words(n, 1), "x" * n, category="c") for n in range(1, 101)]
    made = prepared(rows, with_params(duplicates={"near": None}), folder=tmp_path)
    assert made.metrics["characters"]["response"] == {"median": 50, "p90": 90, "p99": 99, "longest": 100}
    histogram = (tmp_path / "metrics/lengths.csv").read_text(encoding="utf-8").splitlines()
    assert {"response,1,1", "response,2,2", "response,4,4", "response,64,37"} <= set(histogram)


def test_further_references_are_cleaned_and_written_only_for_rows_that_have_some() -> None:
    rows = plain(30)
    rows[0]["others"] = ["Or so.[1]", "", "Or\u00a0thus."]
    made = prepared(rows, with_params(columns={"references": "others"}))
    assert [row["references"] for row in made.kept if "references" in row] == [["Or so.", "Or thus."]]


def test_equal_rows_are_kept_with_ids_of_their_own_if_params_say_so() -> None:
    rows = [row for row in plain(40) for _ in range(3)]
    params = with_params(duplicates={"exact": False, "near": None})
    made, again = prepared(rows, params), prepared(rows, params)
    assert len(made.kept) == 120 == len({row["id"] for row in made.kept}) and made == again
    once = {row["id"]: row for row in prepared(plain(40)).kept}
    assert [once[row["id"]] for row in made.kept if row["id"] in once] == [*once.values()]
    assert {name: len(rows) for name, rows in made.splits.items()} == {
        name: 3 * len(rows) for name, rows in prepared(plain(40)).splits.items()
    }


TINY = with_params(split={"validation": 0.3, "test": 0.3})
KETTLE = "How do I seal {} kettle with a leak{}"
LIKE_EACH_OTHER = ["Seal it", "seal it!", KETTLE.format("a", "?"), KETTLE.format("a", ""), KETTLE.format("the", "?")]
INTENTS = st.sampled_from([*LIKE_EACH_OTHER, "Why?", "What is this?", "Sum it up.", "Where?", "Who is it?", "\u00e9?"])
CONTEXTS = st.sampled_from(["", "", "A text.", "a text", "Another, of some length.", "A third one.\n\nWith a part."])
RESPONSES = st.sampled_from(["1. One.\n2. Two.", "Yes.", "yes", "No.", "A longer answer to this.[3]", "So it is."])
ROWS = st.lists(
    st.builds(raw, INTENTS, RESPONSES, CONTEXTS, st.sampled_from(["open_qa", "closed_qa", ""])), max_size=12
)
# Rows that fill each split, whatever else is drawn.
FILLING = plain(20, start=1000)


@FEW
@given(ROWS)
def test_prepare_changes_nothing_in_what_it_has_made(rows: list[Raw]) -> None:
    first = prepared([*FILLING, *rows], TINY)
    again = prepared(first.kept, with_params(TINY, columns=OWN_FORMAT))
    assert again.rejected == [] and again.splits == first.splits


@FEW
@given(ROWS, ROWS, st.randoms(use_true_random=False))
def test_neither_another_order_nor_added_rows_move_a_row(
    rows: list[Raw], more: list[Raw], order: random.Random
) -> None:
    rows = [*FILLING, *rows]
    before = split_of(prepared(rows, TINY))
    added = split_of(prepared([*rows, *more], TINY))
    order.shuffle(rows)
    for after in (added, split_of(prepared(rows, TINY))):
        assert all(after[key] == split for key, split in before.items() if key in after)
    assert {key for key, split in before.items() if split == "test"} <= added.keys()


@FEW
@given(ROWS, ROWS)
def test_no_intent_context_or_near_intent_is_in_two_splits(rows: list[Raw], test: list[Raw]) -> None:
    assert_nothing_leaks(prepared([*FILLING, *rows], TINY, test))


def test_shares_are_right_within_sampling_error_in_every_category() -> None:
    rows = [{**row, "category": "abc"[number % 3]} for number, row in enumerate(plain(3000))]
    metrics = prepared(rows, with_params(split={"near_intents": None, "validation": 0.1, "test": 0.1})).metrics
    for counts in [{"all": 3000, **metrics["splits"]}, *metrics["categories"].values()]:
        for name in ("validation", "test"):
            assert abs(counts[name] / counts["all"] - 0.1) < 4 * (0.09 / counts["all"]) ** 0.5


def test_another_seed_makes_another_split() -> None:
    assert split_of(prepared(plain(80))) != split_of(prepared(plain(80), with_params(split={"seed": 1})))


def test_a_number_of_rows_is_met_and_new_rows_never_move_one_from_train_into_the_test() -> None:
    params = with_params(split={"test": 20, "validation": 15, "train": 100})
    made = prepared(plain(160), params)
    assert {name: len(rows) for name, rows in made.splits.items()} == {"train": 100, "validation": 15, "test": 20}
    assert Counter(row["reason"] for row in made.rejected) == {"not_dealt": 25}
    before, after = split_of(made), split_of(prepared([*plain(160), *plain(100, start=500)], params))
    trained = {key for key, split in before.items() if split == "train"}
    assert not trained & {key for key, split in after.items() if split != "train"}


def test_a_smaller_share_of_train_is_a_part_of_a_larger_one() -> None:
    shares = [prepared(plain(200), with_params(split={"train": share})).splits["train"] for share in (0.1, 0.4, 0.8)]
    small, medium, large = ({row["id"] for row in rows} for rows in shares)
    assert small < medium < large


def test_rows_that_match_a_given_test_are_rejected() -> None:
    radiator = "How do I bleed the old radiator in the hall downstairs?"
    test = [raw(radiator, "Open the valve."), raw("Who wrote it?", "She did.", "A long text about a book.")]
    test += [raw("What is a fern?", "A plant.")]
    matching = [
        raw(radiator.lower(), "Another answer."),
        raw(radiator.replace("radiator", "radiators"), "With a key."),
        raw("When was it written?", "In May.", "A long text about a BOOK"),
        raw("What is a fern?", "A plant."),
    ]
    made = prepared([*plain(60), *matching], test=test)
    assert [intent_of(row) for row in made.splits["test"]] == [row["instruction"] for row in test]
    assert {row["source"].rsplit(":")[-1]: (row["reason"], row["detail"]) for row in made.rejected} == {
        "61": ("matches_test", "has the intent of data/raw/test/made.jsonl:1"),
        "62": ("matches_test", "has the near intent of data/raw/test/made.jsonl:1"),
        "63": ("matches_test", "has the context of data/raw/test/made.jsonl:2"),
        "64": ("matches_test", "repeats data/raw/test/made.jsonl:3"),
    }
    assert_nothing_leaks(made)


def test_of_a_given_test_only_empty_and_repeated_rows_are_rejected_and_no_other_row_enters_it() -> None:
    text, near = "A context that is given back.", "How do I fix " + words(0, 20)
    test = [raw("Sum it up.", text, text), raw(near, "Solder it."), raw(near + "?!", "Solder  it"), raw("Empty?", "")]
    test += [raw(near + "s", "Solder it.")]
    made = prepared(plain(400), with_params(reject={"min_characters": 12, "max_characters": 20}), test)
    assert [row["output"] for row in made.splits["test"]] == [text, "Solder it.", "Solder it."]
    assert Counter(row["reason"] for row in made.rejected) == {"empty_response": 1, "duplicate": 1}
    assert len(made.splits["train"]) + len(made.splits["validation"]) == 400
    assert abs(len(made.splits["validation"]) - 40) < 25


def test_a_near_duplicate_is_rejected_and_a_row_with_another_answer_is_kept() -> None:
    answer, other, context = (words(number, 40) for number in range(3))
    question = "How do I take the whole engine of this old car apart?"
    rows = [raw(question, answer), raw(question + "?", answer + " Indeed."), raw(question, other)]
    rows += [raw("May I?", yes_or_no, context) for yes_or_no in ("You may.", "You may not.")]
    made = prepared([*plain(40), *rows])
    assert [(row["reason"], row["detail"]) for row in made.rejected] == [("near_duplicate", f"is near to {SOURCE}:41")]


def test_a_chain_of_near_duplicates_does_not_shrink_to_its_first_row() -> None:
    text = words(0, 60)
    chain = [raw("Tell me more.", text[6 * n : 6 * n + 300]) for n in range(10)]
    made = prepared([*plain(40), *chain])
    kept = [shingle_set(row["output"]) for row in made.kept if row["input"] == "Tell me more."]
    assert 1 < len(kept) < len(chain)
    assert all(jaccard(one, other) < 0.9 for number, one in enumerate(kept) for other in kept[:number])


def test_several_processes_make_the_same_bytes_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**row, "response": row["response"] + " word" * 400} for row in plain(1500)]
    prepared(rows, folder=tmp_path / "one")
    monkeypatch.setattr(stages.prepare, "SMALL", 0)
    prepared(rows, folder=tmp_path / "two")
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()


def test_on_dolly_no_intent_or_context_of_the_given_test_is_left_in_train(real_data: Path) -> None:
    train, test = (read_jsonl(real_data / f"dolly/{part}.jsonl") for part in ("train", "test"))
    made = prepared(train, test=test)
    assert len(made.splits["test"]) == 500
    assert_nothing_leaks(made)
