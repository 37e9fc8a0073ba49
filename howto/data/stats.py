"""Count what became of the raw rows, as metrics and as plots."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from howto.core.atomic import write_csv, write_json
from howto.core.schema import NO_SOURCE
from howto.data.arrays import U32, Codes
from howto.data.config import Clean
from howto.data.row_processor import TEXTS
from howto.data.row_store import RowStore
from howto.data.split import NAMES, NONE

PERCENTILES = {"median": 50, "p90": 90, "p99": 99, "longest": 100}
LARGEST = 30  # categories or sources that are named; the others are summed up
OTHERS = "(others)"
# The reasons to reject a row, in the order in which they are checked.
REASONS = (
    "bad_row", "empty_instruction", "empty_response", "repeated_context", "too_short", "too_long", "not_procedural",
    "duplicate", "near_duplicate", "matches_test", "matches_validation", "not_dealt",
)  # fmt: skip
OVER_SHARE = "over_share"  # the last reason, counted only if there are several sources


def write_report(folder: Path, counts: Counter[str], store: RowStore, codes: Codes) -> None:
    """Write data.json, lengths.csv and categories.csv into `folder`."""
    categories = count_names(store.categories, codes)
    kept = codes != NONE
    lengths = dict(zip(TEXTS, store.arrays["lengths"][kept].T, strict=True))
    rows = int(kept.sum())
    metrics: dict[str, Any] = {
        "rows": {"raw": counts["raw"], "kept": rows, "rejected": counts["raw"] - rows},
        "rejected": {reason: counts[reason] for reason in REASONS},
        "cleaned": {step: counts[step] for step in Clean.model_fields},
        "splits": {name: int((codes == code).sum()) for code, name in enumerate(NAMES)},
        "categories": with_sum(categories),
        "procedural": int(store.arrays["procedural"][kept].sum()),
        "characters": {text: percentiles(values) for text, values in lengths.items()},
    }
    if any(store.sources):
        metrics["rejected"][OVER_SHARE] = counts[OVER_SHARE]
        metrics["sources"] = with_sum(count_names([name or NO_SOURCE for name in store.sources], codes))
    write_json(folder / "data.json", metrics)
    bins = [2**power for power in range(33)]  # characters; each bin ends where the next one begins
    histograms = {text: np.histogram(values, bins)[0].tolist() for text, values in lengths.items()}
    counted = [(text, *bin) for text, rows_in in histograms.items() for bin in zip(bins[:-1], rows_in, strict=True)]
    write_csv(folder / "lengths.csv", [("text", "characters", "rows"), *(bin for bin in counted if bin[-1])])
    by_split = [(category, *count) for category, splits in categories.items() for count in splits.items()]
    write_csv(folder / "categories.csv", [("category", "split", "rows"), *by_split])


def percentiles(values: U32) -> dict[str, int]:
    """Return PERCENTILES of the values, each of which is one of the values."""
    return {name: int(np.percentile(values, p, method="inverted_cdf")) for name, p in PERCENTILES.items()}


def count_names(names: Sequence[str], codes: Codes) -> dict[str, dict[str, int]]:
    """Return the rows of each category or source, the largest first, by split. Rows in no split are not counted."""
    counts: dict[str, Counter[str]] = {}
    for name, code in zip(names, codes.tolist(), strict=True):
        if code != NONE:
            counts.setdefault(name, Counter())[NAMES[code]] += 1
    ordered = sorted(counts, key=lambda name: (-counts[name].total(), name))
    found = {name: counts[name] for name in ordered[:LARGEST]}
    if others := ordered[LARGEST:]:
        found[OTHERS] = sum((counts[name] for name in others), Counter())
    return {name: {split: count[split] for split in NAMES} for name, count in found.items()}


def with_sum(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return counts by split, with those of all splits together before them."""
    return {name: {"all": sum(splits.values()), **splits} for name, splits in counts.items()}
