"""The same rows in any format, fetched and prepared, give the same bytes."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow
import pytest

from howto.core.schema import input_of
from tests.support.fetching import Place
from tests.support.in_process import edit_params, run_stage_here
from tests.support.raw_files import COMPRESS, ROWS, Raw, arrow, csv_text, json_list, jsonl, parquet, table_file

TWENTY = ROWS[:20]
CATEGORIES = datasets.ClassLabel(names=sorted({row["category"] for row in TWENTY}))


def turns(row: Raw) -> tuple[str, str]:
    """What the user says, with the context, and the answer."""
    return input_of(row["instruction"], row["context"]), row["response"]


def beside(row: Raw) -> Raw:
    return {"context": row["context"], "category": row["category"]}


def openai(row: Raw) -> list[Raw]:
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), turns(row), strict=True)]


MESSAGES = [{"messages": openai(row), **beside(row)} for row in TWENTY]
SHAREGPT = [
    {
        "conversations": [
            {"from": name, "value": text} for name, text in zip(("human", "gpt"), turns(row), strict=True)
        ],
        **beside(row),
    }
    for row in TWENTY
]
TRL = [{"prompt": row["instruction"], "completion": row["response"], **beside(row)} for row in TWENTY]
TRL_MESSAGES = [{"prompt": openai(row)[:1], "completion": openai(row)[1:], **beside(row)} for row in TWENTY]
ALPACA = [
    {"instruction": row["instruction"], "input": row["context"], "output": row["response"], "category": row["category"]}
    for row in TWENTY
]


def table(rows: list[Raw]) -> bytes:
    return table_file(pyarrow.Table.from_pylist(rows))


def messages_in_csv() -> bytes:
    rows = [{**row, "messages": json.dumps(row["messages"])} for row in MESSAGES]
    file = io.StringIO()
    writer = csv.DictWriter(file, ("context", "messages", "category"))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def save(folder: Path) -> None:
    datasets.Dataset.from_list(TWENTY).cast_column("category", CATEGORIES).save_to_disk(str(folder))


def save_splits(folder: Path) -> None:
    train = datasets.Dataset.from_list(MESSAGES)
    datasets.DatasetDict({"train": train, "test": train.select([0])}).save_to_disk(str(folder))
    # What a computation on the saved rows leaves beside them.
    (folder / "train/cache-0123456789.arrow").write_bytes((folder / "test/data-00000-of-00001.arrow").read_bytes())


FILES: dict[str, dict[str, bytes] | Callable[[Path], None]] = {
    "JSON lines": {"some.jsonl": jsonl(TWENTY)},
    "NDJSON": {"some.ndjson": jsonl(TWENTY)},
    "a JSON list": {"some.json": json_list(TWENTY)},
    "CSV": {"some.csv": csv_text(TWENTY)},
    "TSV": {"some.tsv": csv_text(TWENTY, delimiter="\t")},
    "Parquet": {"some.parquet": parquet(TWENTY)},
    "Arrow": {"some.arrow": arrow(TWENTY)},
    "JSON lines, gzip": {"some.jsonl.gz": COMPRESS[".gz"](jsonl(TWENTY))},
    "JSON lines, zstd": {"some.jsonl.zst": COMPRESS[".zst"](jsonl(TWENTY))},
    "NDJSON, xz": {"some.ndjson.xz": COMPRESS[".xz"](jsonl(TWENTY))},
    "CSV, bzip2": {"some.csv.bz2": COMPRESS[".bz2"](csv_text(TWENTY))},
    "CSV, zstd": {"SOME.CSV.ZST": COMPRESS[".zst"](csv_text(TWENTY))},
    "several files": {
        "1.jsonl.gz": COMPRESS[".gz"](jsonl(TWENTY[:5])),
        "2.ndjson": jsonl(TWENTY[5:9]),
        "3.parquet": table(MESSAGES[9:15]),
        "4.csv": csv_text(TWENTY[15:]),
    },
    "a saved data set with labels": save,
    "a saved data set with splits": save_splits,
    "messages": {"some.jsonl": jsonl(MESSAGES)},
    "messages in Parquet": {"some.parquet": table(MESSAGES)},
    "messages in CSV": {"some.csv": messages_in_csv()},
    "ShareGPT": {"some.jsonl": jsonl(SHAREGPT)},
    "ShareGPT in a JSON list": {"some.json": json_list(SHAREGPT)},
    "prompt and completion": {"some.jsonl": jsonl(TRL)},
    "prompt and completion as messages in Parquet": {"some.parquet": table(TRL_MESSAGES)},
    "Alpaca": {"some.json": json_list(ALPACA)},
}


def prepared(place: Place, files: dict[str, bytes] | Callable[[Path], None]) -> tuple[dict[str, bytes], str]:
    """What the stages make of a folder of files, and what they print."""
    folder = place.folder / "mine"
    if callable(files):
        files(folder)
    else:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    place.write(data="{source: mine}")
    for key in ("validation", "test"):
        edit_params(place.folder, f"\n      {key}: 12", f"\n      {key}: 4")
    printed = ""
    for stage in ("fetch_data", "prepare"):
        done = run_stage_here(stage, place.folder)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        printed += done.stdout
    return place.files("data/prepared"), printed


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, small_params: str) -> dict[str, bytes]:
    place = Place(tmp_path_factory.mktemp("expected"), small_params)
    made, printed = prepared(place, FILES["JSON lines"])
    assert {name: content.count(b"\n") for name, content in made.items()} == {
        "train.jsonl": 12,
        "validation.jsonl": 4,
        "test.jsonl": 4,
        "rejected.jsonl": 0,
    }
    assert "recognised" not in printed and "not read" not in printed
    return made


@pytest.mark.parametrize("name", FILES)
def test_the_same_rows_in_another_format_give_the_same_bytes(
    name: str, place: Place, expected: dict[str, bytes]
) -> None:
    assert prepared(place, FILES[name])[0] == expected
