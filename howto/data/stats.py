"""What became of the raw rows, as metrics and as plots."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from howto.core.atomic import atomic_file, write_json
from howto.data.row_processor import FIELDS
from howto.data.row_store import Table
from howto.data.split import NAMES, NONE, Codes

PERCENTILES = {"median": 50, "p90": 90, "p99": 99, "longest": 100}
MOST_CATEGORIES = 30  # the metrics name the largest; what a data set has beyond them is summed up
OTHERS = "(others)"
# The reasons for which a row is left out, in the order in which they are looked at.
REASONS = (
    "bad_row",
    "empty_instruction",
    "empty_response",
    "repeated_context",
    "too_short",
    "too_long",
    "not_procedural",
    "duplicate",
    "near_duplicate",
    "matches_test",
    "matches_validation",
    "not_dealt",
)


@dataclass
class Report:
    """The counts that are made while rows are read."""

    raw: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    cleaned: Counter[str] = field(default_factory=Counter)


def summary(report: Report, table: Table, codes: Codes, steps: list[str]) -> dict[str, Any]:
    """The metrics: rows in, kept and rejected by reason, cleaned by step, by split and category, and their lengths."""
    kept = codes != NONE
    by_category = category_counts(table, codes)
    splits = {name: int((codes == code).sum()) for code, name in enumerate(NAMES)}
    return {
        "rows": {"raw": report.raw, "kept": int(kept.sum()), "rejected": report.raw - int(kept.sum())},
        "rejected": {reason: report.reasons[reason] for reason in REASONS},
        "cleaned": {step: report.cleaned[step] for step in steps},
        "splits": splits,
        "categories": {category: {"all": sum(counts.values()), **counts} for category, counts in by_category.items()},
        "procedural": int(table.numbers.procedural[kept].sum()),
        "characters": {
            name: percentiles(lengths) for name, lengths in zip(FIELDS, table.numbers.lengths[kept].T, strict=True)
        },
    }


def percentiles(values: NDArray[np.uint32]) -> dict[str, int]:
    """Those of PERCENTILES, each one of the values; 0 if there is none."""
    if not len(values):
        return dict.fromkeys(PERCENTILES, 0)
    return {name: int(np.percentile(values, p, method="inverted_cdf")) for name, p in PERCENTILES.items()}


def category_counts(table: Table, codes: Codes) -> dict[str, dict[str, int]]:
    """Rows by category, the largest first, and by split."""
    counts = np.zeros((len(table.category_names), len(NAMES)), dtype=np.int64)
    kept = codes != NONE
    np.add.at(counts, (table.categories[kept], codes[kept]), 1)
    totals = counts.sum(axis=1)
    order = sorted(np.flatnonzero(totals).tolist(), key=lambda number: (-totals[number], table.category_names[number]))
    named = {table.category_names[number]: counts[number] for number in order[:MOST_CATEGORIES]}
    if others := order[MOST_CATEGORIES:]:
        named[OTHERS] = counts[others].sum(axis=0)
    return {name: dict(zip(NAMES, row.tolist(), strict=True)) for name, row in named.items()}


def length_histogram(table: Table, codes: Codes) -> list[tuple[str, int, int]]:
    """(text, characters, rows): how many rows have a text of at least so many characters and fewer than twice that.

    Texts of no characters are in none of them.
    """
    lengths = table.numbers.lengths[codes != NONE]
    bins = [0, *(2**power for power in range(32))]
    return [
        (field, start, int(count))
        for field, values in zip(FIELDS, lengths.T, strict=True)
        for start, count in zip(bins, np.histogram(values, [*bins, 2**32])[0], strict=True)
        if count and start
    ]


def write_report(folder: Path, report: Report, table: Table, codes: Codes, steps: list[str]) -> None:
    """Write data.json, lengths.csv and categories.csv into `folder`."""
    write_json(folder / "data.json", summary(report, table, codes, steps))
    with atomic_file(folder / "lengths.csv") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("text", "characters", "rows"), *length_histogram(table, codes)]
        )
    with atomic_file(folder / "categories.csv") as file:
        rows = [
            (category, split, count)
            for category, counts in category_counts(table, codes).items()
            for split, count in counts.items()
        ]
        csv.writer(file, lineterminator="\n").writerows([("category", "split", "rows"), *rows])
