"""Raw files for tests: rows, how they are written in each format, and `prepare` run on them."""

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import random
import string
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet

import stages.prepare
from howto.data.config import Prepare
from howto.params import read_params
from tests.conftest import ROOT

NAMES = ("instruction", "context", "response", "category")
SPLITS = ("train", "validation", "test")
PARAMS = read_params(ROOT / "params.yaml").section(Prepare)
RAW = Path("data/raw/rows")

Raw = dict[str, Any]
Writers = dict[str, Callable[[Any], bytes]]


def with_params(base: Prepare = PARAMS, **changes: Any) -> Prepare:
    """Params with other values: `split={"test": 0.2}` changes that key of that section."""
    values = base.model_dump()
    for name, change in changes.items():
        values[name] = {**values[name], **change} if isinstance(change, dict) else change
    return Prepare.model_validate(values)


def words(number: int, count: int) -> str:
    """Random words, other ones for each number."""
    choose = random.Random(number)
    return " ".join("".join(choose.choices(string.ascii_lowercase, k=5)) for _ in range(count))


# Rows that are not similar, with characters that formats quote or escape.
ROWS = [
    {
        "instruction": f"How do I {words(number, 6)}, \u00e0 la \U0001f600?",
        "context": f'It says "{words(-number, 9)}",\nand [then] {{that}} \\n\\.' if number % 3 == 0 else "",
        "response": f"1. {words(100 + number, 8)}.\n2. {words(200 + number, 8)}; 'done', \"so\".",
        "category": "abc"[number % 3],
    }
    for number in range(40)
]


# Rows that are given as bytes are written as they are.
def as_json(row: object) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()


def jsonl(rows: Sequence[Raw | bytes]) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)


def json_list(rows: Sequence[Raw | bytes]) -> bytes:
    return b"[\n" + b",\n".join(map(as_json, rows)) + b"\n]\n"


def csv_text(rows: Sequence[Raw | bytes], **dialect: Any) -> bytes:
    text = b""
    for row in [dict(zip(NAMES, NAMES, strict=True)), *rows]:
        file = io.StringIO()
        if not isinstance(row, bytes):
            csv.DictWriter(file, NAMES, **dialect).writerow(row)
        text += row + b"\n" if isinstance(row, bytes) else file.getvalue().encode()
    return text


def parquet(rows: Sequence[Raw], **options: Any) -> bytes:
    return table_file(pyarrow.table({name: [row.get(name) for row in rows] for name in NAMES}), **options)


def table_file(table: pyarrow.Table, **options: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, **options)
    return file.getvalue()


def arrow(rows: Sequence[Raw]) -> bytes:
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in NAMES})
    file = io.BytesIO()
    with pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


WRITERS: Writers = {
    ".jsonl": jsonl,
    ".json": json_list,
    ".csv": csv_text,
    ".tsv": partial(csv_text, delimiter="\t"),
    ".parquet": parquet,
    ".arrow": arrow,
}
COMPRESS: Writers = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: bytes(pyarrow.compress(data, codec="zstd", asbytes=True)),
}


class Prepared(NamedTuple):
    """The rows of each split, those of rejected.jsonl, and metrics/data.json."""

    splits: dict[str, list[Raw]]
    rejected: list[Raw]
    metrics: Raw

    @property
    def kept(self) -> list[Raw]:
        return [row for split in SPLITS for row in self.splits[split]]


def prepare(folder: Path, files: Mapping[str, bytes], params: Prepare = PARAMS) -> Prepared:
    """Run the stage on these files in data/raw/, and return what it wrote."""
    for name, content in files.items():
        path = folder / "data/raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with contextlib.chdir(folder):
        stages.prepare.prepare(params)
    split_of = {name: read_jsonl(folder / f"data/prepared/{name}.jsonl") for name in (*SPLITS, "rejected")}
    rejected = split_of.pop("rejected")
    return Prepared(split_of, rejected, json.loads((folder / "metrics/data.json").read_text(encoding="utf-8")))


def read_jsonl(path: Path) -> list[Raw]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
