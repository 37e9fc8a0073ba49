"""Clean the raw rows, write them in Alpaca's format, and split them without a leak.

reads:   data/raw/*.jsonl
params:  prepare
writes:  data/prepared/{train,validation,test,rejected}.jsonl, metrics/data.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

from pydantic import BaseModel

from howto.cleaning import clean, normal_key
from howto.params.file import read_params
from howto.params.prepare import Prepare
from howto.rows import RawRow, Row, number_rows, write_rows
from howto.split import deal
from howto.steps import is_procedural
from howto.stop import Stop, stops_cleanly
from howto.whole import whole_file, whole_folder

RAW = Path("data/raw")
PREPARED = Path("data/prepared")
METRICS = Path("metrics/data.json")
SPLITS = ("train", "validation", "test")


class Rejected(BaseModel):
    """A raw row that is not used: where it stood, why it was dropped, and what it said."""

    source: str
    reason: str
    row: RawRow


@stops_cleanly
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params().section(Prepare)
    rows, rejected = read_raw(RAW, params.instruction)
    splits = deal(rows, params)
    for split in SPLITS:
        if split not in splits and not (split == "validation" and params.validation_share == 0):
            raise Stop(f"{RAW}: {len(rows)} usable rows leave none for {split}; bring more rows, or raise its share")
    with whole_folder(PREPARED) as folder:
        for split in SPLITS:
            write_rows(folder / f"{split}.jsonl", (row for row, s in zip(rows, splits, strict=True) if s == split))
        write_rows(folder / "rejected.jsonl", rejected)
    metrics = {
        "rows": {"raw": len(rows) + len(rejected), "kept": len(rows), "rejected": len(rejected)},
        "rejected": dict(sorted(Counter(row.reason for row in rejected).items())),
        "splits": {split: splits.count(split) for split in SPLITS},
        "categories": dict(sorted(Counter(row.category for row in rows).items())),
        "procedural": sum(is_procedural(row.output) for row in rows),
    }
    with whole_file(METRICS) as file:
        json.dump(metrics, file, indent=2)
        file.write("\n")
    counts = ", ".join(f"{splits.count(split)} {split}" for split in SPLITS)
    print(f"prepare: {len(rows)} rows kept ({counts}), {len(rejected)} rejected -> {PREPARED}")


def read_raw(folder: Path, instruction: str) -> tuple[list[Row], list[Rejected]]:
    """Every row of the folder's JSONL files: those to use, cleaned, and the others with a reason.

    Raises:
        Stop: no such folder, no JSONL file in it, or a line that is no row.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise Stop(f"{folder}: no .jsonl file in it; make it with `dvc repro fetch_data`")
    rows: list[Row] = []
    rejected: list[Rejected] = []
    seen: set[tuple[str, str, str]] = set()
    for path in files:
        for number, raw in number_rows(path, RawRow):
            row = _row(raw, instruction)
            key = (normal_key(row.intent), normal_key(row.context), normal_key(row.output))
            if not row.intent:
                reason = "empty instruction"
            elif not row.output:
                reason = "empty response"
            elif key in seen:
                reason = "duplicate"
            else:
                seen.add(key)
                rows.append(row)
                continue
            rejected.append(Rejected(source=f"{path}:{number}", reason=reason, row=raw))
    if not rows:
        raise Stop(f"{folder}: no usable row in {len(rejected)}; are the columns instruction, context, response?")
    return rows, rejected


def _row(raw: RawRow, instruction: str) -> Row:
    intent = clean(raw.instruction or "", marks=False)
    context = clean(raw.context or "", marks=True)
    output = clean(raw.response or "", marks=bool(context))
    digest = hashlib.sha256("\0".join([intent, context, output]).encode())
    return Row(
        id=digest.hexdigest()[:12],
        category=raw.category or "none",
        instruction=instruction,
        input=f"{intent}\n\n{context}" if context else intent,
        context=context,
        output=output,
    )


if __name__ == "__main__":
    main()
