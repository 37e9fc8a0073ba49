"""Raw files for tests: rows, how they are written in each format and read again, and `prepare` run on them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow
import pyarrow.parquet
import pytest

import stages.prepare
from howto.data import chunks
from howto.data.chunks import LONGEST_ROW
from howto.data.config import Columns
from howto.data.readers import csv as read_csv
from howto.data.readers import json as read_json
from howto.data.readers import parquet as read_parquet
from howto.data.readers import read_chunks
from howto.data.records import BadRow, Fields
from tests.conftest import ROOT

COLUMNS = Columns(instruction="instruction", context="context", response="response", category="category")
NAMES = ("instruction", "context", "response", "category")
RAW = Path("data/raw/rows")
GOOD = 40

Raw = dict[str, Any]
Content = bytes | Callable[[], bytes]


def good_rows() -> list[Raw]:
    """Rows no two of which are near to each other, with what files are quoted and escaped for."""
    choose = random.Random(2)

    def words(count: int) -> str:
        return " ".join("".join(choose.choices(string.ascii_lowercase, k=5)) for _ in range(count))

    return [
        {
            "instruction": f"How do I {words(6)}, \u00e0 la \U0001f600?",
            "context": f'It says "{words(9)}",\nand [then] {{that}} \\n\\.' if number % 3 == 0 else "",
            "response": f"1. {words(8)}.\n2. {words(8)}; 'done', \"so\".",
            "category": "abc"[number % 3],
        }
        for number in range(GOOD)
    ]


ROWS = good_rows()
OTHER = [{"prompt": row["instruction"], "completion": row["response"]} for row in ROWS]
EXTRA = [{"id": 7, "tags": [["a"], []], **row, "score": 0.5, "url": None} for row in ROWS]
WITHOUT = [{"instruction": row["instruction"], "response": row["response"]} for row in ROWS]
NULLS = [{**row, "context": None, "category": None} for row in WITHOUT]

BOM = b"\xef\xbb\xbf"
START = b'{"instruction": "How?", "response": '


def as_json(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def jsonl(rows: Sequence[Raw | bytes]) -> bytes:
    return b"".join((row if isinstance(row, bytes) else as_json(row)) + b"\n" for row in rows)


def json_list(rows: Sequence[Raw | bytes]) -> bytes:
    return b"[\n" + b",\n".join(row if isinstance(row, bytes) else as_json(row) for row in rows) + b"\n]\n"


def csv_text(rows: Sequence[Raw | bytes], **form: Any) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, NAMES, **form)
    writer.writeheader()
    text = file.getvalue().encode()
    for row in rows:
        file.seek(0)
        file.truncate()
        if not isinstance(row, bytes):
            writer.writerow(row)
        text += row + b"\n" if isinstance(row, bytes) else file.getvalue().encode()
    return text


def parquet(rows: Sequence[Raw], **form: Any) -> bytes:
    """A text that is given as bytes is written as it is, as no writer of texts would."""
    columns = {}
    for name in NAMES:
        values = [row.get(name) for row in rows]
        raw = [value.encode() if isinstance(value, str) else value for value in values]
        columns[name] = pyarrow.array(raw, pyarrow.binary()).view(pyarrow.string())
    return table_file(pyarrow.table(columns), **form)


def table_file(table: pyarrow.Table, **form: Any) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, **form)
    return file.getvalue()


WRITERS: dict[str, Callable[[Any], bytes]] = {
    ".jsonl": jsonl,
    ".json": json_list,
    ".csv": csv_text,
    ".parquet": parquet,
}


def file_name(case: str) -> str:
    """The file of a case such as "csv: empty"."""
    return f"some.{case.partition(':')[0]}"


def write_case(folder: Path, name: str, content: Content) -> Path:
    """Write the file of a case; where it stands."""
    path = folder / file_name(name)
    path.write_bytes(content() if callable(content) else content)
    return path


def read(path: Path, columns: Columns = COLUMNS) -> list[Fields | BadRow]:
    return [row for chunk in read_chunks(path, columns) for row in chunk.fields(columns)]


@contextlib.contextmanager
def in_pieces(size: int, longest: int = LONGEST_ROW) -> Iterator[None]:
    """Read files in pieces of so many bytes, and no longer rows."""
    with contextlib.ExitStack() as patches:
        for module in (chunks, read_json, read_parquet):
            patches.enter_context(patch.object(module, "CHUNK_BYTES", size))
        for module in (read_csv, read_json, read_parquet):
            patches.enter_context(patch.object(module, "LONGEST_ROW", longest))
        yield


def texts(rows: Sequence[Fields | BadRow]) -> list[Raw]:
    return [{name: getattr(row, name) for name in NAMES} for row in rows]


def make_workplace(folder: Path, bad_rows: str) -> None:
    """Put params.yaml, for a few rows, and an empty folder for raw rows there."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    changes = {
        "bad_rows: stop": f"bad_rows: {bad_rows}",
        "validation: 60 ": "validation: 0.1 ",
        "test: 120\n": "test: 0.1\n",
    }
    for old, new in changes.items():
        assert text.count(old) == 1, f"params.yaml has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    (folder / "params.yaml").write_text(text, encoding="utf-8")
    (folder / RAW).mkdir(parents=True)


def prepare(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """The stage in a folder: exit status, stderr."""
    status = 0
    with contextlib.chdir(folder), patch.object(sys, "argv", ["prepare"]):
        try:
            stages.prepare.main()
        except SystemExit as end:
            assert isinstance(end.code, int)
            status = end.code
    return status, capsys.readouterr().err


def prepare_beside_a_good_file(
    folder: Path, name: str, content: Content, bad_rows: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, set[Path]]:
    """The stage on the file of a case and a good one: exit status, stderr, and what it made, changed or removed."""
    make_workplace(folder, bad_rows)
    (folder / RAW / "good.jsonl").write_bytes(jsonl(ROWS))
    write_case(folder / RAW, name, content)
    before = everything(folder)
    status, error = prepare(folder, capsys)
    return status, error, {path for path, _ in before.items() ^ everything(folder).items()}


def everything(folder: Path) -> dict[Path, bytes | None]:
    """All files and folders in it, with the files' content."""
    return {path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics/data.json").read_text(encoding="utf-8"))
    return found


def written(folder: Path, name: str) -> list[Raw]:
    return [json.loads(line) for line in (folder / f"data/prepared/{name}.jsonl").read_bytes().splitlines()]
