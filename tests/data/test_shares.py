"""Several sources: their rows know where they are from, and the training rows meet the shares without a repetition."""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from howto.core.errors import UserError
from howto.data.config import Prepare
from howto.data.shares import most_rows, rows_by_share
from tests.data.test_prepare import assert_nothing_leaks, plain, prepared, raw
from tests.support.raw_files import PARAMS, Prepared, Raw, jsonl, prepare, with_params

OWN = with_params(split={"validation": 0.2, "test": 0.2})
DATA = Path("metrics/data.json")


def from_sources(
    sources: Mapping[str, Sequence[Raw]],
    shares: Mapping[str, float] | None = None,
    params: Prepare = OWN,
    test: Sequence[Raw] = (),
    folder: Path | None = None,
) -> Prepared:
    """What `prepare` makes of these rows by source, as `fetch_data` writes them."""
    files = {f"rows/{name}/{name}.jsonl": jsonl(rows) for name, rows in sources.items()}
    files |= {"test/test.jsonl": jsonl(test)} if test else {}
    files["sources.json"] = json.dumps({name: (shares or {}).get(name) for name in sorted(sources)}).encode()
    with tempfile.TemporaryDirectory() as name:
        return prepare(folder or Path(name), files, params)


def by_source(rows: Sequence[Raw]) -> dict[str, int]:
    return dict(Counter(row["source"] for row in rows))


def ids(rows: Sequence[Raw], source: str) -> set[str]:
    return {row["id"] for row in rows if row["source"] == source}


def test_rows_keep_the_name_of_their_source_and_are_split_cleaned_and_named_as_without_one() -> None:
    rows = {"faq": plain(60), "tickets": plain(40, start=100)}
    made, single = from_sources(rows), prepared([*rows["faq"], *rows["tickets"]], OWN)
    for name, of_split in made.splits.items():
        assert [{key: row[key] for key in row if key != "source"} for row in of_split] == single.splits[name]
    outputs = {row["response"]: name for name, of_source in rows.items() for row in of_source}
    assert {row["output"]: row["source"] for row in made.kept} == outputs
    counts = made.metrics.pop("sources")
    assert counts == {
        name: {"all": len(rows[name]), **{split: by_source(made.splits[split])[name] for split in made.splits}}
        for name in ("faq", "tickets")
    }
    assert made.metrics["rejected"].pop("over_share") == 0
    assert made.metrics == single.metrics and not any("source" in row for row in single.kept)


def test_duplicates_and_leaks_are_found_over_all_sources() -> None:
    again, twin = raw("How do I seal it?", "Press."), raw("How do I seal it", "Pull.")
    for shares in (None, {"a": 0.5, "b": 0.5}):
        made = from_sources({"a": [*plain(60), again], "b": [*plain(60, start=100), again, twin]}, shares)
        (duplicate,) = [row for row in made.rejected if row["reason"] == "duplicate"]
        assert duplicate["source"] == "data/raw/rows/b/b.jsonl:61"
        assert duplicate["detail"] == "repeats data/raw/rows/a/a.jsonl:61" and duplicate["row"]["source"] == "b"
        where = {
            split for split, rows in made.splits.items() for row in rows if row["input"].startswith("How do I seal")
        }
        assert len(where) == 1
        assert_nothing_leaks(made)


def test_training_rows_over_the_share_of_a_source_are_rejected_and_the_other_splits_stay() -> None:
    rows = {"a": plain(300), "b": plain(100, start=1000)}
    whole, made = from_sources(rows), from_sources(rows, {"a": 0.25, "b": 0.75})
    assert made.splits["validation"] == whole.splits["validation"] and made.splits["test"] == whole.splits["test"]
    before, left = by_source(whole.splits["train"]), by_source(made.splits["train"])
    assert left["b"] == before["b"] and left["a"] == pytest.approx(left["b"] / 3, abs=1)
    over = [row for row in made.rejected if row["reason"] == "over_share"]
    assert len(over) == before["a"] - left["a"] == made.metrics["rejected"]["over_share"]
    assert {row["row"]["source"] for row in over} == {"a"} and all(
        row["source"].startswith("data/raw/") for row in over
    )
    assert made.metrics["rows"]["rejected"] == len(made.rejected)
    assert made.metrics["sources"]["a"]["train"] == left["a"]


def test_a_share_of_nothing_leaves_validation_and_test_rows() -> None:
    made = from_sources({"a": plain(60), "b": plain(60, start=100)}, {"a": 1.0, "b": 0.0})
    assert set(by_source(made.splits["train"])) == {"a"} and set(by_source(made.splits["test"])) == {"a", "b"}


SHARES = st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(any)


def as_shares(weights: Sequence[int]) -> dict[str, float]:
    return {f"s{number}": weight / sum(weights) for number, weight in enumerate(weights)}


@settings(deadline=None, max_examples=20)
@given(SHARES, st.data())
def test_shares_are_met_within_a_row_without_oversampling_whatever_the_order_of_rows(
    weights: list[int], data: st.DataObject
) -> None:
    shares = as_shares(weights)
    sizes = {name: data.draw(st.integers(8, 60)) for name in shares}
    rows = {name: plain(size, start=100 * number) for number, (name, size) in enumerate(sizes.items())}
    params = with_params(split={"validation": 0.1, "test": 0.1})
    whole = from_sources(rows, params=params)
    before = by_source(whole.splits["train"])
    if not all(before.get(name) for name in shares if shares[name]):
        with pytest.raises(UserError, match=r"params\.yaml: data\.sources\.s\d: .* of no training rows at all"):
            from_sources(rows, shares, params)
        return
    made = from_sources(rows, shares, params)
    left, total = by_source(made.splits["train"]), len(made.splits["train"])
    for name, share in shares.items():
        assert left.get(name, 0) <= before.get(name, 0) and abs(left.get(name, 0) - share * total) < 1
    assert len({row["id"] for row in made.kept}) == len(made.kept)
    # One more row would need a row twice.
    assert any((total + 1) * share > before.get(name, 0) for name, share in shares.items())
    mixed = {name: random.Random(0).sample(of_source, len(of_source)) for name, of_source in rows.items()}
    again = from_sources(dict(reversed(mixed.items())), shares, params)
    for split in made.splits:
        assert {row["id"] for row in again.splits[split]} == {row["id"] for row in made.splits[split]}


def test_a_larger_training_set_contains_a_smaller_one_and_a_number_of_rows_is_met_in_the_shares() -> None:
    rows = {"a": plain(200), "b": plain(100, start=1000), "c": plain(50, start=2000)}
    shares = {"a": 0.2, "b": 0.5, "c": 0.3}
    smaller: set[str] = set()
    for number in (1, 5, 33, 34, 35, 80):
        made = from_sources(rows, shares, with_params(OWN, split={"train": number}))
        train, left = made.splits["train"], by_source(made.splits["train"])
        assert len(train) == number and all(abs(left.get(name, 0) - number * shares[name]) < 1 for name in shares)
        assert smaller < {row["id"] for row in train}
        smaller = {row["id"] for row in train}
    with pytest.raises(UserError, match=r"prepare\.split\.train: expected 300 rows in the shares .* enough for \d+\."):
        from_sources(rows, shares, with_params(OWN, split={"train": 300}))
    shared = [from_sources(rows, shares, with_params(OWN, split={"train": part})) for part in (0.2, 0.5)]
    few, many = ({row["id"] for row in made.splits["train"]} for made in shared)
    assert few < many


def test_more_rows_of_a_scarce_source_only_add_rows_of_the_others() -> None:
    rows, shares = {"a": plain(200), "b": plain(40, start=1000)}, {"a": 0.5, "b": 0.5}
    before = from_sources(rows, shares)
    after = from_sources({**rows, "b": plain(70, start=1000)}, shares)
    for name in rows:
        assert ids(before.splits["train"], name) < ids(after.splits["train"], name)


def test_equal_rows_that_are_kept_count_each_for_their_own_source() -> None:
    params = with_params(OWN, duplicates={"exact": False, "near": None})
    made = from_sources({"a": plain(60) * 2, "b": plain(60)}, {"a": 0.5, "b": 0.5}, params)
    left = by_source(made.splits["train"])
    assert left["a"] == left["b"] and len({row["id"] for row in made.kept}) == len(made.kept)


def test_a_given_test_has_no_source_unless_prepare_has_written_it() -> None:
    rows, test = {"a": plain(60), "b": plain(60, start=100)}, plain(20, start=500)
    made = from_sources(rows, test=test)
    assert not any("source" in row for row in made.splits["test"])
    assert made.metrics["sources"]["none"] == {"all": 20, "train": 0, "validation": 0, "test": 20}
    earlier = from_sources(rows).splits["test"]
    again = from_sources({"c": plain(60, start=900)}, test=earlier)
    assert again.splits["test"] == earlier and again.rejected == []
    assert set(again.metrics["sources"]) == {"a", "b", "c"}


def test_prepare_keeps_the_sources_in_the_rows_that_it_has_made() -> None:
    first = from_sources({"a": plain(60), "b": plain(60, start=100)})
    again = prepared(first.kept, OWN)
    assert again.splits == first.splits and again.metrics["sources"] == first.metrics["sources"]


def test_a_source_all_of_whose_rows_are_in_another_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: data\.sources\.b: 0\.5 of no training rows at all\. .*$"):
        from_sources({"a": plain(60), "b": plain(60)}, {"a": 0.5, "b": 0.5}, folder=tmp_path)
    assert not (tmp_path / "data/prepared").exists() and not (tmp_path / DATA).exists()


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"a": "x"}', b'{"a": [1]}', b"\xff"])
def test_a_damaged_list_of_sources_is_one_line(tmp_path: Path, damage: bytes) -> None:
    with pytest.raises(UserError, match=r"data/raw/sources\.json: damaged\. Make it again"):
        prepare(tmp_path, {"rows/a/a.jsonl": jsonl(plain(60)), "sources.json": damage}, PARAMS)


@settings(deadline=None)
@given(SHARES, st.integers(0, 400))
def test_rows_by_share_are_within_their_quota_and_grow_with_the_total(weights: list[int], total: int) -> None:
    shares = as_shares(weights)
    fewer, more = rows_by_share(shares, total), rows_by_share(shares, total + 1)
    assert sum(fewer.values()) == total
    for name, share in shares.items():
        assert abs(fewer[name] - share * total) < 1 and fewer[name] <= more[name]


def test_by_largest_remainders_a_source_would_lose_a_row_to_a_larger_total() -> None:
    # The Alabama paradox: the largest remainders give c two of 10 rows (4.29, 4.29, 1.43), and one of 11 (4.71, 4.71,
    # 1.57).
    shares = {"a": 3 / 7, "b": 3 / 7, "c": 1 / 7}
    assert rows_by_share(shares, 10)["c"] <= rows_by_share(shares, 11)["c"]


def test_shares_that_meet_in_many_rows_take_no_time_for_each_row() -> None:
    assert rows_by_share({"a": 0.9, "b": 0.1}, 10**12 + 5) == {"a": 9 * 10**11 + 5, "b": 10**11}
    assert most_rows({"a": 0.9, "b": 0.1, "c": 0.0}, {"a": 10**9, "b": 7, "c": 0}) == 70
