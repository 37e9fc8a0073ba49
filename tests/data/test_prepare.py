"""`prepare` as a whole: nothing vanishes, nothing leaks, and no row moves."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stages.prepare
from howto.core.errors import UserError
from howto.data.clean_text import normal_key
from howto.data.config import Prepare
from howto.data.minhash import jaccard, shingle_set
from howto.params import read_params
from tests.conftest import ROOT, run_stage

SPLITS = ("train", "validation", "test")
PARAMS = read_params(ROOT / "params.yaml").section(Prepare)
OWN_FORMAT = {"instruction": "input", "context": "context", "response": "output", "category": "category"}

Raw = dict[str, Any]
Result = dict[str, list[dict[str, Any]]]


def with_params(base: Prepare = PARAMS, **changes: Any) -> Prepare:
    """Params with other values: `split={"test": 0.2}` changes that key of that section."""
    values = base.model_dump()
    for name, change in changes.items():
        values[name] = {**values[name], **change} if isinstance(change, dict) else change
    return Prepare.model_validate(values)


def prepared(folder: Path, rows: Sequence[Raw], test: Sequence[Raw] = (), params: Prepare = PARAMS) -> Result:
    """What `prepare` makes of the rows: those of each split, the rejected ones, and the metrics."""
    for name, part in (("rows", rows), ("test", test)):
        if part:
            path = folder / "data/raw" / name / "made.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    with contextlib.chdir(folder):
        stages.prepare.prepare(params)
    return result(folder)


def result(folder: Path) -> Result:
    read = {
        name: [json.loads(line) for line in (folder / f"data/prepared/{name}.jsonl").open(encoding="utf-8")]
        for name in (*SPLITS, "rejected")
    }
    return {**read, "metrics": [json.loads((folder / "metrics/data.json").read_text(encoding="utf-8"))]}


def of(rows: Sequence[Raw], params: Prepare = PARAMS, test: Sequence[Raw] = ()) -> Result:
    """As `prepared`, in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        return prepared(Path(name), rows, test, params)


def raw(intent: str, response: str = "Do it.", context: str = "", category: str = "open_qa") -> Raw:
    return {"instruction": intent, "context": context, "response": response, "category": category}


def plain(count: int, start: int = 0) -> list[Raw]:
    """Rows that have nothing to do with each other."""
    numbers = range(start, start + count)
    return [raw(f"{word(n)} {word(7 * n + 1)} {word(31 * n + 5)}", f"{word(3 * n + 2)} {n}.") for n in numbers]


def word(number: int) -> str:
    """A word of its own for each number."""
    draw = random.Random(number)
    return "".join(draw.choice("bcdfghjklmnpqrstvwxz") + draw.choice("aeiou") for _ in range(4)) + str(number)


def split_of(made: Result) -> dict[str, str]:
    """The split of each row that is used, by its normalised texts."""
    return {key_of(row): name for name in SPLITS for row in made[name]}


def key_of(row: Raw) -> str:
    intent = row["input"].removesuffix(row["context"])
    return "|".join(map(normal_key, (intent, row["context"], row["output"])))


# --- Nothing vanishes ---------------------------------------------------------------------------------


def test_every_rejected_row_is_there_with_its_line_and_its_reason(tmp_path: Path) -> None:
    good = plain(60)
    bad = [
        raw("", "An answer."),
        raw("How do I wait?", " \n"),
        raw("Sum it up.", "The very long context of this row.", "The very long context of this row."),
        {**good[0], "instruction": good[0]["instruction"].upper() + "!"},
        raw("Short?", "No"),
        raw("Long?", "x" * 5001),
    ]
    params = with_params(reject={"min_characters": 3, "max_characters": 5000})
    made = prepared(tmp_path, [*good, *bad], params=params)
    source = "data/raw/rows/made.jsonl"
    assert {(row["source"], row["reason"]) for row in made["rejected"]} == {
        (f"{source}:61", "empty_instruction"),
        (f"{source}:62", "empty_response"),
        (f"{source}:63", "repeated_context"),
        (f"{source}:64", "duplicate"),
        (f"{source}:65", "too_short"),
        (f"{source}:66", "too_long"),
    }
    metrics = made["metrics"][0]
    assert metrics["rows"] == {"raw": 66, "kept": 60, "rejected": 6}
    assert {reason for reason, count in metrics["rejected"].items() if count} == {r["reason"] for r in made["rejected"]}
    assert sum(metrics["splits"].values()) == sum(c["all"] for c in metrics["categories"].values()) == 60


def test_a_rejected_row_says_which_row_it_repeats_and_what_it_said(tmp_path: Path) -> None:
    rows = plain(40)
    made = prepared(tmp_path, [*rows, rows[4]])
    [rejected] = made["rejected"]
    assert rejected["detail"] == "repeats data/raw/rows/made.jsonl:5"
    assert rejected["row"]["input"] == rows[4]["instruction"] and rejected["row"]["output"] == rows[4]["response"]


def test_every_rejection_can_be_switched_off(tmp_path: Path) -> None:
    rows = plain(40)
    text = "A context that is given back."
    rows += [raw("", "An answer."), raw("A question?", ""), raw("Sum it up.", text, text), rows[0]]
    params = with_params(reject={"empty": False, "repeated_context": False}, duplicates={"exact": False, "near": None})
    made = prepared(tmp_path, rows, params=params)
    assert made["rejected"] == [] and made["metrics"][0]["rows"]["kept"] == 44


def test_the_rows_that_a_step_of_cleaning_changes_are_counted_and_left_alone_when_it_is_off(tmp_path: Path) -> None:
    dirty = [raw("a\u00a0b?", "one\r\ntwo"), raw("c?", "It is so.[3] And so.", "It is so.[3] So it is.")]
    dirty += [raw("d  e?", "f")]
    made = prepared(tmp_path / "on", [*plain(40), *dirty])
    cleaned = made["metrics"][0]["cleaned"]
    expected = {"line_ends": 1, "invisible_characters": 1, "reference_marks": 1, "blanks": 1}
    assert cleaned == {**dict.fromkeys(cleaned, 0), **expected}
    off = with_params(clean=dict.fromkeys(cleaned, False))
    made = prepared(tmp_path / "off", [*plain(40), *dirty], params=off)
    assert set(made["metrics"][0]["cleaned"].values()) == {0}
    outputs = {row["output"] for name in SPLITS for row in made[name]}
    assert {"one\r\ntwo", "It is so.[3] And so."} <= outputs


def test_the_count_of_procedural_rows_is_there_whether_or_not_the_others_are_left_out(tmp_path: Path) -> None:
    steps = [{**row, "response": "1. Open it.\n2. Close it."} for row in plain(50)]
    rows = [*steps, *plain(30, start=100)]
    assert prepared(tmp_path / "all", rows)["metrics"][0]["procedural"] == 50
    made = prepared(tmp_path / "some", rows, params=with_params(reject={"not_procedural": True}))
    assert made["metrics"][0]["procedural"] == made["metrics"][0]["rows"]["kept"] == 50
    assert made["metrics"][0]["rejected"]["not_procedural"] == 30


def test_lengths_are_percentiles_of_the_rows_that_are_kept(tmp_path: Path) -> None:
    rows = [raw(word(n), "x" * n, category="c") for n in range(1, 101)]
    made = prepared(tmp_path, rows, params=with_params(duplicates={"near": None}))
    assert made["metrics"][0]["characters"]["response"] == {"median": 50, "p90": 90, "p99": 99, "longest": 100}
    histogram = (tmp_path / "metrics/lengths.csv").read_text(encoding="utf-8").splitlines()
    assert {"response,1,1", "response,2,2", "response,4,4", "response,64,37"} <= set(histogram)


def test_categories_beyond_the_largest_are_summed_up(tmp_path: Path) -> None:
    rows = [{**row, "category": f"c{n % 50}"} for n, row in enumerate(plain(400))]
    categories = prepared(tmp_path, rows)["metrics"][0]["categories"]
    assert len(categories) == 31 and list(categories)[-1] == "(others)"
    assert sum(counts["all"] for counts in categories.values()) == 400


# --- Columns ------------------------------------------------------------------------------------------


def test_rows_in_alpacas_columns_need_no_code(tmp_path: Path) -> None:
    rows = [{"instruction": r["instruction"], "input": "Some text.", "output": r["response"]} for r in plain(1)]
    rows += [{"instruction": r["instruction"], "input": "", "output": r["response"]} for r in plain(60, start=1)]
    columns = {"instruction": "instruction", "context": "input", "response": "output", "category": None}
    made = prepared(tmp_path, rows, params=with_params(columns=columns))
    first = next(row for name in SPLITS for row in made[name] if row["context"])
    assert first["input"] == rows[0]["instruction"] + "\n\nSome text." and first["output"] == rows[0]["output"]
    assert made["metrics"][0]["categories"].keys() == {"none"}


def test_further_references_stand_in_the_rows_that_have_some(tmp_path: Path) -> None:
    columns = {"instruction": "instruction", "context": None, "response": "response", "category": None}
    rows: list[dict[str, object]] = [dict(row) for row in plain(30)]
    rows[0]["others"] = ["Or so.[1]", "", "Or\u00a0thus."]
    made = prepared(tmp_path, rows, params=with_params(columns={**columns, "references": "others"}))
    found = [row for name in SPLITS for row in made[name]]
    assert [row["references"] for row in found if "references" in row] == [["Or so.", "Or thus."]]
    rows[1]["others"] = "no list"
    with pytest.raises(UserError, match=r"made.jsonl:2: field 'others': a list of texts is wanted, not a text"):
        prepared(tmp_path, rows, params=with_params(columns={**columns, "references": "others"}))


def test_a_column_that_is_not_there_stops_with_those_that_are(tmp_path: Path) -> None:
    columns = {"instruction": "prompt", "context": None, "response": "response", "category": None}
    with pytest.raises(
        UserError, match=r"made.jsonl:1: field 'prompt' is missing \(the row has 'instruction', 'context'"
    ):
        prepared(tmp_path, plain(10), params=with_params(columns=columns))


# --- The split ----------------------------------------------------------------------------------------

TINY = with_params(split={"validation": 0.3, "test": 0.3})
KETTLE = "How do I mend {} kettle with a leak{}"
LIKE_EACH_OTHER = ["Mend it", "mend it!", KETTLE.format("a", "?"), KETTLE.format("a", ""), KETTLE.format("the", "?")]
intents = st.sampled_from([*LIKE_EACH_OTHER, "Why?", "What is this?", "Sum it up.", "Where?", "Who is it?", "\u00e9?"])
contexts = st.sampled_from(["", "", "A text.", "a text", "Another, of some length.", "A third one.\n\nWith a part."])
responses = st.sampled_from(["1. One.\n2. Two.", "Yes.", "yes", "No.", "A longer answer to this.[3]", "So it is."])
raws = st.builds(raw, intents, responses, contexts, st.sampled_from(["open_qa", "closed_qa", ""]))
# Rows that fill each split, whatever else is drawn.
FILLING = plain(40, start=1000)


@settings(deadline=None, max_examples=60)
@given(st.lists(raws, max_size=12))
def test_prepare_changes_nothing_in_what_it_has_made(rows: list[Raw]) -> None:
    first = of([*FILLING, *rows], TINY)
    made = [row for name in SPLITS for row in first[name]]
    again = of(made, with_params(TINY, columns=OWN_FORMAT))
    assert again["rejected"] == []
    assert {name: again[name] for name in SPLITS} == {name: first[name] for name in SPLITS}


@settings(deadline=None, max_examples=60)
@given(st.lists(raws, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_rows_split(rows: list[Raw], shuffle: random.Random) -> None:
    rows = [*FILLING, *rows]
    one = split_of(of(rows, TINY))
    shuffle.shuffle(rows)
    other = split_of(of(rows, TINY))
    assert all(other[key] == split for key, split in one.items() if key in other)


@settings(deadline=None, max_examples=60)
@given(st.lists(raws, max_size=8), st.lists(raws, max_size=8))
def test_added_rows_move_no_row_and_take_none_from_the_test(rows: list[Raw], more: list[Raw]) -> None:
    before, after = split_of(of([*FILLING, *rows], TINY)), split_of(of([*FILLING, *rows, *more], TINY))
    assert all(after[key] == split for key, split in before.items() if key in after)
    assert {key for key, split in before.items() if split == "test"} <= after.keys()


@settings(deadline=None, max_examples=60)
@given(st.lists(raws, max_size=14), st.lists(raws, max_size=3))
def test_no_intent_context_or_near_intent_is_in_two_splits(rows: list[Raw], test: list[Raw]) -> None:
    made = of([*FILLING, *rows], TINY, test=test)
    assert_nothing_leaks(made)


def assert_nothing_leaks(made: Result) -> None:
    where: dict[tuple[str, str], set[str]] = {}
    for name in SPLITS:
        for row in made[name]:
            intent = row["input"].removesuffix(row["context"]).strip()
            for kind, key in (("intent", normal_key(intent)), ("context", normal_key(row["context"]))):
                if key:
                    where.setdefault((kind, key), set()).add(name)
    assert [key for key, splits in where.items() if len(splits) > 1] == []
    intents = [(shingle_set(key), splits) for (kind, key), splits in where.items() if kind == "intent"]
    near = [
        (one, other)
        for number, (one, split) in enumerate(intents)
        for other, another in intents[:number]
        if split != another and jaccard(one, other) >= 0.8
    ]
    assert near == []


def test_shares_are_right_within_sampling_error_in_every_category(tmp_path: Path) -> None:
    rows = [{**row, "category": "abc"[number % 3]} for number, row in enumerate(plain(3000))]
    metrics = prepared(tmp_path, rows, params=with_params(split={"near_intents": None}))["metrics"][0]
    for counts in [{"all": 3000, **metrics["splits"]}, *metrics["categories"].values()]:
        total = counts["all"]
        for name in ("validation", "test"):
            assert abs(counts[name] / total - 0.1) < 4 * (0.09 / total) ** 0.5


def test_another_seed_deals_otherwise() -> None:
    rows = plain(80)
    assert split_of(of(rows)) != split_of(of(rows, with_params(split={"seed": 1})))


def test_a_number_of_rows_is_taken_as_it_is_and_new_rows_never_enter_the_test_from_train() -> None:
    params = with_params(split={"test": 20, "validation": 15, "train": 100})
    rows = plain(160)
    made = of(rows, params)
    assert {name: len(made[name]) for name in SPLITS} == {"train": 100, "validation": 15, "test": 20}
    assert Counter(row["reason"] for row in made["rejected"]) == {"not_dealt": 25}
    before, after = split_of(made), split_of(of([*rows, *plain(100, start=500)], params))
    trained = {key for key, split in before.items() if split == "train"}
    assert not trained & {key for key, split in after.items() if split != "train"}


def test_a_share_of_train_takes_from_the_same_rows_whatever_its_size() -> None:
    rows = plain(200)
    trains = [
        {row["id"] for row in of(rows, with_params(split={"train": share}))["train"]} for share in (0.1, 0.4, 0.8)
    ]
    assert trains[0] < trains[1] < trains[2]


def test_more_rows_than_there_are_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prepare.split: 510 rows are asked for, and there are 60"):
        prepared(tmp_path, plain(60), params=with_params(split={"test": 500, "validation": 10}))
    assert not (tmp_path / "data/prepared").exists()


# --- A test that is given -----------------------------------------------------------------------------


def test_rows_that_match_a_given_test_are_removed_and_counted(tmp_path: Path) -> None:
    test = [
        raw("How do I bleed the old radiator in the hall downstairs?", "Open the valve."),
        raw("Who wrote it?", "She did.", "A long text about a book."),
        raw("What is a fern?", "A plant."),
    ]
    matching = [
        raw("how do i bleed the old radiator in the hall downstairs", "Another answer."),
        raw("How do I bleed the old radiators in the hall downstairs?", "With a key."),
        raw("When was it written?", "In May.", "A long text about a BOOK"),
        raw("What is a fern?", "A plant."),
    ]
    made = prepared(tmp_path, [*plain(60), *matching], test)
    assert [row["input"].split("\n")[0] for row in made["test"]] == [row["instruction"] for row in test]
    assert {(row["source"].rsplit(":")[-1], row["reason"]): row["detail"] for row in made["rejected"]} == {
        ("61", "matches_test"): "has the intent of data/raw/test/made.jsonl:1",
        ("62", "matches_test"): "has the near intent of data/raw/test/made.jsonl:1",
        ("63", "matches_test"): "has the context of data/raw/test/made.jsonl:2",
        ("64", "matches_test"): "repeats data/raw/test/made.jsonl:3",
    }
    assert made["metrics"][0]["rejected"]["matches_test"] == 4
    assert_nothing_leaks(made)


def test_a_given_test_stays_as_it_is_but_for_dirt_and_empty_rows(tmp_path: Path) -> None:
    text = "A context that is given back."
    near = "How do I mend the old kettle with a leak in the lid"
    test = [raw("Sum it up.", text, text), raw(near, "Solder it."), raw(near + "?!", "Solder  it"), raw("Empty?", "")]
    test += [raw(near + "s", "Solder it.")]
    made = prepared(tmp_path, plain(60), test, with_params(reject={"min_characters": 12, "not_procedural": False}))
    assert [row["output"] for row in made["test"]] == [text, "Solder it.", "Solder it."]
    reasons = Counter(row["reason"] for row in made["rejected"] if "raw/test" in row["source"])
    assert reasons == {"empty_response": 1, "duplicate": 1}


def test_beside_a_given_test_all_other_rows_are_dealt_to_train_and_validation(tmp_path: Path) -> None:
    made = prepared(tmp_path, plain(400), [raw("What is a fern?", "A plant.")])
    assert len(made["test"]) == 1 and len(made["train"]) + len(made["validation"]) == 400
    assert abs(len(made["validation"]) - 40) < 25


# --- Near-duplicates ----------------------------------------------------------------------------------


def test_a_row_that_is_nearly_another_is_left_out_and_one_whose_answer_differs_is_kept(tmp_path: Path) -> None:
    answer = " ".join(word(n) for n in range(40))
    rows = [
        raw("How do I take the whole engine of this old car apart?", answer),
        raw("How do I take the whole engine of this old car apart ??", answer + " Indeed."),
        raw("How do I take the whole engine of this old car apart?", " ".join(word(n) for n in range(50, 90))),
    ]
    made = prepared(tmp_path, [*plain(40), *rows])
    assert [(row["reason"], row["detail"]) for row in made["rejected"]] == [
        ("near_duplicate", "is near to data/raw/rows/made.jsonl:41")
    ]


def test_a_chain_of_near_rows_does_not_shrink_to_its_first(tmp_path: Path) -> None:
    words = [word(n) for n in range(60)]
    chain = [raw("Tell me more.", " ".join([*words[n : n + 50]])) for n in range(0, 10, 1)]
    made = prepared(tmp_path, [*plain(40), *chain])
    kept = [row["output"] for name in SPLITS for row in made[name] if row["input"] == "Tell me more."]
    assert 1 < len(kept) < len(chain)
    for row in kept:
        assert all(jaccard(shingle_set(row), shingle_set(other)) < 0.9 for other in kept if other != row)


# --- Size ---------------------------------------------------------------------------------------------


def test_several_processes_make_the_same_bytes_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**row, "response": row["response"] + " word" * 400} for row in plain(1500)]
    prepared(tmp_path / "one", rows)
    monkeypatch.setattr(stages.prepare, "SMALL", 0)
    prepared(tmp_path / "two", rows)
    for path in sorted((tmp_path / "one").rglob("*")):
        if path.is_file():
            assert (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes() == path.read_bytes()


def test_prepare_and_fetch_data_import_no_torch(tmp_path: Path, small_params: str) -> None:
    (tmp_path / "params.yaml").write_text(small_params, encoding="utf-8")
    (tmp_path / "watched.py").write_text(
        "import sys\n"
        "import stages.fetch_data, stages.prepare\n"
        "stages.fetch_data.main()\n"
        "stages.prepare.main()\n"
        "assert not {'torch', 'transformers', 'pandas'} & sys.modules.keys()\n",
        encoding="utf-8",
    )
    done = run_stage(tmp_path, "watched")
    assert done.returncode == 0, done.stderr
    assert "rows kept" in done.stdout


@pytest.fixture
def dolly(real_data: Path) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as name:
        read = [
            [json.loads(line) for line in (real_data / f"dolly/{part}.jsonl").open(encoding="utf-8")]
            for part in ("train", "test")
        ]
        yield prepared(Path(name), read[0], read[1])


def test_on_dolly_no_intent_or_context_of_the_given_test_is_left_in_train(dolly: Result) -> None:
    assert len(dolly["test"]) == 500
    assert_nothing_leaks(dolly)
