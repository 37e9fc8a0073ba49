"""Several sources are fetched side by side; params that contradict each other are one line."""

import json

import pytest

from howto.core.errors import UserError
from howto.params import read_params
from howto.sources.config import Data
from tests.support.fetching import Place, lay, rows
from tests.support.hub import sha256

FILES = {"faq.jsonl": rows(3), "tickets/a.jsonl": rows(4), "tickets/more/b.jsonl": rows(5), "test.jsonl": rows(2)}
FAQ, TICKETS = "{source: faq.jsonl, share: 0.3}", "{source: ./tickets, file: '*.jsonl', share: 0.7}"


def test_each_source_is_copied_to_a_folder_of_its_name_with_the_shares_beside_them(place: Place) -> None:
    lay(place.folder, FILES)
    printed = place.succeeds("data", f"{{sources: {{faq: {FAQ}, tickets: {TICKETS}}}, test_source: test.jsonl}}")
    found = place.files("data/raw")
    assert json.loads(found.pop("sources.json")) == {"faq": 0.3, "tickets": 0.7}
    assert found == {
        "rows/faq/faq.jsonl": FILES["faq.jsonl"],
        "rows/tickets/a.jsonl": FILES["tickets/a.jsonl"],
        "rows/tickets/more/b.jsonl": FILES["tickets/more/b.jsonl"],
        "test/test.jsonl": FILES["test.jsonl"],
    }
    assert sha256(FILES["faq.jsonl"]) in printed
    assert "-> data/raw/rows/faq\n" in printed and "-> data/raw/rows/tickets\n" in printed


def test_the_order_in_params_changes_no_byte_and_shares_may_be_left_out(place: Place) -> None:
    lay(place.folder, FILES)
    made = []
    for order in (f"{{faq: {FAQ}, tickets: {TICKETS}}}", f"{{tickets: {TICKETS}, faq: {FAQ}}}"):
        made.append((place.succeeds("data", f"{{sources: {order}}}"), place.files("data/raw")))
    assert made[0] == made[1]
    place.succeeds("data", "{sources: {b: {source: faq.jsonl}, a: {source: ./tickets}}}")
    assert json.loads(place.files("data/raw")["sources.json"]) == {"a": None, "b": None}


@pytest.mark.parametrize(
    ("sources", "phrases"),
    [
        (f"{{faq: {FAQ}, b: {{source: ./nowhere.jsonl, share: 0.7}}}}", ["Correct data.sources.b.source"]),
        (f"{{faq: {FAQ}, b: {{source: tickets, file: x.csv, share: 0.7}}}}", ["data.sources.b.source", "'x.csv'"]),
        ("{a: {source: faq.jsonl, revision: main}}", ["params.yaml: data.sources.a.source", "'main'"]),
        (f"{{a: {{source: faq.jsonl, sha256: {'a' * 64}}}}}", ["faq.jsonl: expected sha256"]),
    ],
)
def test_a_source_that_cannot_be_read_is_named_and_leaves_nothing(
    place: Place, sources: str, phrases: list[str]
) -> None:
    lay(place.folder, FILES)
    place.fails("data", f"{{sources: {sources}}}", *phrases)


MISTAKES = {
    "neither": ("{test_source: a.jsonl}", "expected source, or sources with several by name, got neither"),
    "both": ("{source: a.jsonl, sources: {a: {source: b.jsonl}}}", "expected source or sources, got both (source)"),
    "a key of a single source": ("{revision: main, sources: {a: {source: a/b}}}", "got both (revision)"),
    "no source": ("{sources: {}}", "sources: expected one or more, got none"),
    "shares of less than all": (
        "{sources: {a: {source: a/b, share: 0.3}, b: {source: a/c, share: 0.6}}}",
        "sources: expected shares that sum to 1, got 0.9",
    ),
    "a share for some": (
        "{sources: {a: {source: a/b, share: 1.0}, b: {source: a/c}}}",
        "sources: expected a share for all or for none, got none for b",
    ),
    "a share of more than all": ("{sources: {a: {source: a/b, share: 1.5}}}", "sources.a.share: expected less than"),
    "a share of a single source": ("{source: a/b, share: 1.0}", "data.share: unknown key"),
    "a source in a source": ("{sources: {a: {source: a/b, test_source: a/c}}}", "sources.a.test_source: unknown key"),
    "a file and a split": ("{sources: {a: {source: a/b, file: a.csv, split: x}}}", "sources.a: file excludes config"),
    "a name that is a path": ("{sources: {../a: {source: a/b}}}", "names a folder, got '../a'"),
    "a name that is hidden": ("{sources: {.a: {source: a/b}}}", "names a folder, got '.a'"),
    "a name with a space": ("{sources: {a b: {source: a/b}}}", "names a folder, got 'a b'"),
    "a name that is a number": ("{sources: {2024: {source: a/b}}}", "sources.2024"),
    "names that differ in case": ("{sources: {FAQ: {source: a/b}, faq: {source: a/c}}}", "got faq twice"),
    "a name that is too long": (f"{{sources: {{{'a' * 51}: {{source: a/b}}}}}}", "names a folder, got 'aaa"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_contradiction_in_params_is_one_line_that_names_file_line_and_key(place: Place, name: str) -> None:
    data, expected = MISTAKES[name]
    place.write(data=data)
    with pytest.raises(UserError) as error:
        read_params(place.folder / "params.yaml")
    message = str(error.value)
    assert expected in message and "profiles.smollm2.data" in message and "\n" not in message
    assert message.startswith(f"{place.folder / 'params.yaml'}:")


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.333333, 0.333333, 0.333334), (0.1,) * 10, (1,)])
def test_shares_that_sum_to_one_within_rounding_are_valid(place: Place, shares: tuple[float, ...]) -> None:
    sources = ", ".join(f"s{number}: {{source: a/b, share: {share}}}" for number, share in enumerate(shares))
    place.write(data=f"{{sources: {{{sources}}}}}")
    data = read_params(place.folder / "params.yaml").section(Data)
    assert [source.share for source in data.by_name().values()] == list(shares)
