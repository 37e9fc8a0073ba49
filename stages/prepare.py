"""Clean the raw rows, write them in Alpaca's format, and split them without a leak.

reads:   data/raw/rows/; if there is a separate test file, data/raw/test/; if there are several sources,
         data/raw/sources.json
params:  prepare, profiles.<profile>.prepare
writes:  data/prepared/{train,validation,test,rejected}.jsonl,
         metrics/data.json, metrics/lengths.csv, metrics/categories.csv
"""

import argparse
import sys
from collections import Counter
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile

from tqdm import tqdm

from howto.core.atomic import atomic_folder
from howto.core.errors import UserError, reports_errors
from howto.core.output_lock import output_lock
from howto.core.paths import METRICS, PREPARED, RAW_ROWS, RAW_SOURCES, RAW_TEST, TEST
from howto.core.reference_words import check_references
from howto.core.schema import Row, number_rows
from howto.core.workers import map_in_order, usable_cores
from howto.data.arrays import Codes
from howto.data.config import Prepare, Split, prepare_settings
from howto.data.duplicates import reject_duplicates
from howto.data.formats.readers import read_chunks
from howto.data.formats.row_formats import ColumnUse, RowFormats
from howto.data.row_processor import RowProcessor, rejected_line
from howto.data.row_store import RowStore
from howto.data.shares import read_shares, reject_over_share
from howto.data.split import NAMES, NONE, VALIDATION, split_rows
from howto.data.stats import write_report
from howto.params import read_params

SMALL = 2 << 20  # bytes; less is done before other processes have started


@reports_errors
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params()
    with output_lock(PREPARED):
        prepare(prepare_settings(params))
        check_words(str(params.value("evaluate.tokenizer")))


def prepare(params: Prepare) -> None:
    """Do the stage's work in the working directory.

    Raise UserError if the raw files are bad, or leave no row for a split.
    """
    with atomic_folder(PREPARED) as folder, TemporaryFile(dir=folder) as lines, TemporaryFile(dir=folder) as keys:
        store = RowStore(lines, keys)
        sources = read_shares(RAW_SOURCES)
        counts = read_rows(store, folder / "rejected.jsonl", params, RAW_ROWS if sources else None)
        reject_duplicates(store, params.duplicates)
        if shares := {name: share for name, share in sources.items() if share is not None}:
            codes, by_source = split_in_shares(store, params.split, shares)
        else:
            codes, by_source = split_rows(store, params.split), {}
        counts += write_splits(folder, store, codes)
        check_splits(codes, params)
    write_report(METRICS, counts, store, codes)
    splits = ", ".join(f"{(codes == code).sum()} {name}" for code, name in enumerate(NAMES))
    for name, (left, before) in by_source.items():
        print(f"prepare: source {name}: {left} of {before} training rows kept for its share of {shares[name]:g}")
    kept = int((codes != NONE).sum())
    print(f"prepare: {kept} of {counts['raw']} rows kept ({splits}), {counts['raw'] - kept} rejected -> {PREPARED}")


def read_rows(store: RowStore, rejected: Path, params: Prepare, folder_of_sources: Path | None = None) -> Counter[str]:
    """Read, clean and check all raw rows: the usable ones go to `store`, the others to the file `rejected`.

    `folder_of_sources` has a folder for each source, if there are several.

    Returns:
        "raw" rows, rejected rows by reason, and cleaned rows by step.

    Raises:
        UserError: there is no raw file, one is damaged or has no readable row, or (if params say so) a row is bad.
    """
    files = raw_files(RAW_TEST) + raw_files(RAW_ROWS)
    if not raw_files(RAW_ROWS):
        raise UserError(f"{RAW_ROWS}: no file in it. Make it with `dvc repro fetch_data`.")
    processes = usable_cores() if sum(path.stat().st_size for path in files) > SMALL else 1
    chunks = chain.from_iterable(read_chunks(path, RowFormats(params.columns)) for path in files)
    counts: Counter[str] = Counter()
    columns = ColumnUse(params.columns)
    problems: dict[Path, str] = {}
    readable: set[Path] = set()
    bar = tqdm(desc="read and clean", unit="row", unit_scale=True, disable=None)
    with rejected.open("wb") as file, bar:
        for chunk in map_in_order(RowProcessor(params, RAW_TEST, folder_of_sources), chunks, processes):
            store.add(chunk)
            file.write(chunk.rejected)
            counts += chunk.counts
            columns.add(chunk.formats, chunk.path.name)
            if chunk.problem:
                problems.setdefault(chunk.path, chunk.problem)
            if chunk.counts["raw"] > chunk.counts["bad_row"]:
                readable.add(chunk.path)
            bar.update(chunk.counts["raw"])
    for path, problem in problems.items():
        if path not in readable:
            raise UserError(f"{problem}. No row of the file can be read: fix it, or prepare.columns in params.yaml.")
    columns.check()
    for line in columns.lines():
        print(f"prepare: {line}")
    store.finish()
    if not len(store):
        found = ", ".join(f"{count} {what}" for what, count in counts.items())
        raise UserError(f"{RAW_ROWS}: no usable row ({found}). Check prepare.columns and prepare.reject.")
    return counts


def raw_files(folder: Path) -> list[Path]:
    """Return the files that `fetch_data` brought, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def split_in_shares(
    store: RowStore, params: Split, shares: dict[str, float]
) -> tuple[Codes, dict[str, tuple[int, int]]]:
    """Split the rows, then reject training rows by source. Return the splits, and (rows left, rows before) by source.

    Raises as `reject_over_share`.
    """
    most = params.train if isinstance(params.train, int) else None
    codes = split_rows(store, params if most is None else params.model_copy(update={"train": "rest"}))
    return codes, reject_over_share(store, codes, shares, most)


def write_splits(folder: Path, store: RowStore, codes: Codes) -> Counter[str]:
    """Write each row to the file of its split or to rejected.jsonl, and count the rejected ones by reason."""
    rejections: Counter[str] = Counter()
    bar = tqdm(store.lines(), total=len(store), desc="write", unit="row", disable=None)
    with ExitStack() as files:
        splits = [files.enter_context((folder / f"{name}.jsonl").open("wb")) for name in NAMES]
        rejected = files.enter_context((folder / "rejected.jsonl").open("ab"))
        for row, (line, code) in enumerate(zip(bar, codes.tolist(), strict=True)):
            if code != NONE:
                splits[code].write(line)
                continue
            about = store.rejection(row)
            rejected.write(rejected_line(about, line))
            rejections[about["reason"]] += 1
    return rejections


def check_splits(codes: Codes, params: Prepare) -> None:
    """Raise a UserError if a split that params ask for has no row."""
    for code, name in enumerate(NAMES):
        if not (codes == code).any() and not (code == VALIDATION and params.split.validation == 0):
            kept = int((codes != NONE).sum())
            from_file = name == "test" and raw_files(RAW_TEST)
            fix = "Check the rows of data.test_source" if from_file else "Bring more rows, or raise its share"
            raise UserError(f"{RAW_ROWS}: {kept} usable rows leave none for {name}. {fix}.")


def check_words(tokenizer: str) -> None:
    """Warn about test rows whose references `evaluate` could not score, before hours of training. Writes nothing.

    Raise UserError if that is most of them.
    """
    for warning in check_references((row for _, row in number_rows(TEST, Row)), tokenizer):
        print(f"prepare: warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    main()
