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


def test_configurations_and_splits_are_chosen_by_name_by_default_and_without_a_readme(
    languages: Hub, place: Place
) -> None:
    row = {"messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So.\\n"}]}
    chats = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row]), chats)
    files = languages.repositories[f"datasets/{SOURCE}"]
    for name in ("en", "de"):
        readme = README.replace(b"name: %s\n" % name.encode(), b"name: %s\n  default: true\n" % name.encode())
        languages.repositories[f"datasets/someone/{name}"] = {**files, "README.md": readme}
    languages.repositories["datasets/someone/chats"] = {**files, "en/test.parquet": chats.getvalue()}
    languages.repositories["datasets/someone/plain"] = {"train.jsonl": jsonl("How?"), "test.jsonl": jsonl("Why?")}
    parts = {
        "default": ("en", jsonl("How?", "Naïve — 1\u2028?", "Why?")),
        "default_configuration": ("de, split: test", jsonl("Wann?")),
        "conversations": ("chats, config: en, split: test", json.dumps(row).encode() + b"\n"),
        "names_of_files": ("plain, split: test", jsonl("Why?")),
    }
    sources = ", ".join(f"{part}: {{source: someone/{source}}}" for part, (source, _) in parts.items())
    place.succeeds("data", f"{{sources: {{{sources}}}}}")
    expected = {f"{part}/rows.jsonl": data for part, (_, data) in parts.items()}
    assert place.files("data/raw/rows") == expected


@pytest.mark.parametrize(
    ("data", "phrase"),
    [
        (f"{{source: {SOURCE}}}", "data.config: expected one of en, de; got none"),
        (f"{{source: {SOURCE}, config: en, split: dev}}", "data.split: expected one of train, test; got dev"),
        (
            f"{{source: rows.jsonl, test_source: {SOURCE}, test_config: fr}}",
            "data.test_config: expected one of en, de; got fr",
        ),
        ("{source: someone/broken, split: train}", "the datasets library cannot read it"),
    ],
)
def test_a_wrong_configuration_or_split_is_one_line(languages: Hub, place: Place, data: str, phrase: str) -> None:
    languages.repositories["datasets/someone/broken"] = {"train.parquet": b"PAR1"}
    (place.folder / "rows.jsonl").write_bytes(ROWS["rows.jsonl"])
    place.fails("data", data, phrase)
