"""Rows of one configuration and split of a data set on the hub."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.fetching import ROWS, Place
from tests.support.hub import COMMIT, Hub, sha256

README = b"""---
license: mit
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*.parquet
  - split: test
    path: en/test.parquet
- config_name: de
  data_files:
  - split: train
    path: de/train.parquet
  - split: test
    path: de/test.parquet
---
# Rows
"""
SOURCE = "someone/languages"


def parquet(*texts: str) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"instruction": texts, "references": [[text] for text in texts]}), buffer)
    return buffer.getvalue()


def jsonl(*texts: str) -> bytes:
    lines = [json.dumps({"instruction": text, "references": [text]}, ensure_ascii=False) for text in texts]
    return "".join(line + "\n" for line in lines).encode()


@pytest.fixture
def languages(hub: Hub) -> Hub:
    """Two configurations with two splits each."""
    hub.repositories[f"datasets/{SOURCE}"] = {
        "README.md": README,
        "en/train-0.parquet": parquet("How?", "Naïve — 1\u2028?"),
        "en/train-1.parquet": parquet("Why?"),
        "en/test.parquet": parquet("When?"),
        "de/train.parquet": parquet("Wie?"),
        "de/test.parquet": parquet("Wann?"),
    }
    return hub


def test_a_split_is_one_file_of_jsonl_and_no_other_split_is_downloaded(languages: Hub, place: Place) -> None:
    expected = jsonl("How?", "Naïve — 1\u2028?", "Why?")
    pin = f"revision: {COMMIT}, sha256: {sha256(expected)}"
    test = f"test_source: {SOURCE}, test_config: en, test_split: test"
    printed = place.succeeds("data", f"{{source: {SOURCE}, config: en, split: train, {pin}, {test}}}")
    assert place.files("data/raw") == {"rows/rows.jsonl": expected, "test/rows.jsonl": jsonl("When?")}
    assert "configuration en (of en, de), split train (of train, test)" in printed and COMMIT in printed
    assert all(SOURCE in asked.path and "/de/" not in asked.path for asked in languages.asked)


def test_conversations_of_one_configuration_keep_their_messages(languages: Hub, place: Place) -> None:
    row = {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So.\\n"}]}
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row]), buffer)
    languages.repositories[f"datasets/{SOURCE}"]["en/test.parquet"] = buffer.getvalue()
    place.succeeds("data", f"{{source: {SOURCE}, config: en, split: test}}")
    assert json.loads(place.files("data/raw/rows")["rows.jsonl"]) == row


@pytest.mark.parametrize(
    ("readme", "more", "texts"),
    [
        (README.replace(b"name: en\n", b"name: en\n  default: true\n"), "", ["How?", "Naïve — 1\u2028?", "Why?"]),
        (README.replace(b"name: de\n", b"name: de\n  default: true\n"), ", split: test", ["Wann?"]),
    ],
)
def test_what_is_not_given_is_the_default_configuration_and_its_train_split(
    languages: Hub, place: Place, readme: bytes, more: str, texts: list[str]
) -> None:
    languages.repositories[f"datasets/{SOURCE}"]["README.md"] = readme
    place.succeeds("data", f"{{source: {SOURCE}{more}}}")
    assert place.files("data/raw/rows") == {"rows.jsonl": jsonl(*texts)}


def test_without_configurations_in_the_readme_splits_are_found_by_their_names(hub: Hub, place: Place) -> None:
    hub.repositories["datasets/someone/plain"] = {"train.jsonl": jsonl("How?"), "test.jsonl": jsonl("Why?")}
    place.succeeds("data", "{source: someone/plain, split: test}")
    assert place.files("data/raw/rows") == {"rows.jsonl": jsonl("Why?")}


@pytest.mark.parametrize(
    ("data", "phrase"),
    [
        (f"{{source: {SOURCE}}}", "data.config: expected one of en, de; got none"),
        (f"{{source: {SOURCE}, config: fr}}", "data.config: expected one of en, de; got fr"),
        (f"{{source: {SOURCE}, config: en, split: dev}}", "data.split: expected one of train, test; got dev"),
        (f"{{source: {SOURCE}, config: de, test_source: {SOURCE}, test_config: fr}}", "data.test_config: expected one"),
        ("{source: someone/broken, split: train}", "the datasets library cannot read it"),
        ("{source: rows.jsonl, split: train}", "is a local path, which has no 'train'"),
        (f"{{source: {SOURCE}, file: rows.jsonl, split: train}}", "file excludes config and split"),
    ],
)
def test_a_wrong_configuration_or_split_is_one_line(languages: Hub, place: Place, data: str, phrase: str) -> None:
    languages.repositories["datasets/someone/broken"] = {"train.parquet": b"PAR1"}
    (place.folder / "rows.jsonl").write_bytes(ROWS["rows.jsonl"])
    place.fails("data", data, phrase)
