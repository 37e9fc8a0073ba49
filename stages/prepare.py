"""Clean the raw rows, write them in Alpaca's format, and split them without a leak.

reads:   data/raw/rows/ and, if there is a separate test file, data/raw/test/
params:  prepare, profiles.<profile>.prepare
writes:  data/prepared/{train,validation,test,rejected}.jsonl,
         metrics/data.json, metrics/lengths.csv, metrics/categories.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from howto.core.atomic import atomic_folder
from howto.core.errors import UserError, reports_errors
from howto.core.output_lock import output_lock
from howto.core.paths import METRICS, PREPARED, RAW_ROWS, RAW_TEST
from howto.core.workers import map_in_order, usable_cores
from howto.data.chunks import Chunk
from howto.data.config import Clean, Prepare, ProfilePrepare
from howto.data.dedup import Numbers, exact_duplicates, near_duplicates
from howto.data.minhash import NearIndex
from howto.data.readers import read_chunks
from howto.data.row_processor import Digester, rejected_line
from howto.data.row_store import Table
from howto.data.split import NAMES, NONE, TEST, VALIDATION, Codes, deal, find_leaks
from howto.data.stats import Report, write_report
from howto.params import read_params

SMALL = 2 << 20  # bytes; less than this is done sooner than other processes have started


class Verdicts:
    """Which usable rows are not used after all, each with its reason and the row that it repeats or matches."""

    def __init__(self, rows: int) -> None:
        self._reasons: list[tuple[str, str]] = []
        self._reason = np.full(rows, -1, dtype=np.int8)  # number in `_reasons`
        self._other: Numbers = np.full(rows, -1, dtype=np.int64)

    @property
    def used(self) -> NDArray[np.bool_]:
        """Which rows are still used."""
        return self._reason < 0

    def reject(self, reason: str, how: str, other: Numbers) -> None:
        """Reject the rows for which `other` is not -1, for it; `how` says in words how the two belong together."""
        new = (other >= 0) & self.used
        self._reason[new] = len(self._reasons)
        self._other[new] = other[new]
        self._reasons.append((reason, how))

    def of(self, row: int, table: Table) -> tuple[str, str]:
        """The reason and its detail."""
        reason, how = self._reasons[self._reason[row]]
        return reason, f"{how} {table.source(int(self._other[row]))}" if how else ""


@reports_errors
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params()
    with output_lock(PREPARED):
        prepare(params.section(ProfilePrepare).applied_to(params.section(Prepare)))


def prepare(params: Prepare) -> None:
    """Do the stage's work in the working directory.

    Raises:
        UserError: what was fetched is not as it should be, or leaves no row for a split that is wanted.
    """
    with atomic_folder(PREPARED) as folder, ExitStack() as files:
        spool = folder / "rows.part"
        table = Table(files.enter_context(spool.open("w+b")))
        report = read_rows(table, folder / "rejected.jsonl", params)
        verdicts = Verdicts(len(table))
        given_test = table.from_files_in(RAW_TEST)
        reject_duplicates(table, given_test, verdicts, params)
        codes = split_rows(table, given_test, verdicts, params)
        write_splits(folder, table, codes, verdicts, report)
        check_splits(codes, params)
        spool.unlink()
    write_report(METRICS, report, table, codes, list(Clean.model_fields))
    counts = ", ".join(f"{(codes == code).sum()} {name}" for code, name in enumerate(NAMES))
    kept = int((codes != NONE).sum())
    print(f"prepare: {kept} of {report.raw} rows kept ({counts}), {report.raw - kept} rejected -> {PREPARED}")


def read_rows(table: Table, rejected: Path, params: Prepare) -> Report:
    """Read, clean and check all raw rows: the usable ones go to `table`, the others to the file `rejected`.

    Raises:
        UserError: there is no raw file, one is damaged or has no row in it, or (if params say so) a row is bad.
    """
    files = raw_files(RAW_TEST) + raw_files(RAW_ROWS)
    if not raw_files(RAW_ROWS):
        raise UserError(f"{RAW_ROWS}: no file in it; make it with `dvc repro fetch_data`")
    size = sum(path.stat().st_size for path in files)
    processes = usable_cores() if size > SMALL else 1
    report = Report()
    good: dict[Path, bool] = {}
    problems: dict[Path, str] = {}
    bar = tqdm(total=size, desc="read and clean", unit="B", unit_scale=True, disable=None)
    with rejected.open("wb") as file, bar:
        for digest in map_in_order(Digester(params, RAW_TEST), chunks(files, params), processes):
            table.add(digest)
            file.writelines(digest.rejected)
            report.raw += digest.seen
            report.reasons.update(digest.reasons)
            report.cleaned.update(digest.cleaned)
            good[digest.path] = good.get(digest.path, False) or digest.seen > digest.reasons["bad_row"]
            if digest.problem:
                problems.setdefault(digest.path, digest.problem)
            bar.update(digest.size)
    for path, problem in problems.items():
        if not good[path]:
            raise UserError(f"{problem}; no row of this file is one: mend the file, or prepare.columns in params.yaml")
    table.close()
    if not len(table):
        why = ", ".join(f"{count} {reason}" for reason, count in report.reasons.items())
        raise UserError(
            f"{RAW_ROWS}: no usable row in {report.raw} ({why}); look at prepare.columns and prepare.reject"
        )
    return report


def raw_files(folder: Path) -> list[Path]:
    """The files that `fetch_data` brought, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def chunks(files: list[Path], params: Prepare) -> Iterator[Chunk]:
    """The chunks of all files."""
    for path in files:
        yield from read_chunks(path, params.columns)


def reject_duplicates(table: Table, given_test: NDArray[np.bool_], verdicts: Verdicts, params: Prepare) -> None:
    """Find the rows that repeat an earlier one. One that repeats a row of a given test file matches the test.

    In such a file rows may be near to each other: it is as it was given.
    """

    def reject(reason: str, how: str, found: Numbers) -> None:
        verdicts.reject("matches_test", how, np.where(~given_test & given_test[found], found, -1))
        verdicts.reject(reason, how, found)

    if params.duplicates.exact:
        reject("duplicate", "repeats", exact_duplicates(table.numbers.rows))
    if params.duplicates.near is not None:
        watch = partial(tqdm, desc="near-duplicates", unit="row", disable=None)
        found = near_duplicates(table.near_rows(params.duplicates.near), verdicts.used, given_test, watch)
        reject("near_duplicate", "is near to", found)


def split_rows(table: Table, given_test: NDArray[np.bool_], verdicts: Verdicts, params: Prepare) -> Codes:
    """The split of each row; NONE for those that are rejected, among them those that would leak."""
    numbers, threshold = table.numbers, params.split.near_intents
    codes = np.full(len(table), NONE, dtype=np.uint8)
    codes[verdicts.used] = deal(numbers.places[verdicts.used], given_test[verdicts.used], params.split)
    verdicts.reject("not_dealt", "", np.where(codes == NONE, 0, -1))
    rows = np.flatnonzero(verdicts.used)

    def near_intents(of: Numbers) -> NearIndex:
        return table.near_intents(rows[of], threshold or 1.0)

    leaks = find_leaks(codes[rows], numbers.intents[rows], numbers.contexts[rows], near_intents if threshold else None)
    for what, found in leaks.items():
        other = np.full(len(table), -1, dtype=np.int64)
        other[rows] = np.where(found >= 0, rows[found], -1)
        verdicts.reject("matches_test", f"has the {what} of", np.where(codes[other] == TEST, other, -1))
        verdicts.reject("matches_validation", f"has the {what} of", other)
    codes[~verdicts.used] = NONE
    return codes


def write_splits(folder: Path, table: Table, codes: Codes, verdicts: Verdicts, report: Report) -> None:
    """Write each row to the file of its split, or with its reason to rejected.jsonl."""
    bar = tqdm(table.lines(), total=len(table), desc="write", unit="row", disable=None)
    with ExitStack() as files:
        splits = [files.enter_context((folder / f"{name}.jsonl").open("wb")) for name in NAMES]
        rejected = files.enter_context((folder / "rejected.jsonl").open("ab"))
        for row, (line, code) in enumerate(zip(bar, codes.tolist(), strict=True)):
            if code != NONE:
                splits[code].write(line)
                continue
            reason, detail = verdicts.of(row, table)
            rejected.write(rejected_line(table.source(row), reason, detail, row=line))
            report.reasons[reason] += 1


def check_splits(codes: Codes, params: Prepare) -> None:
    """Stop where a split that is wanted has no row."""
    for code, name in enumerate(NAMES):
        if not (codes == code).any() and not (code == VALIDATION and params.split.validation == 0):
            kept = int((codes != NONE).sum())
            raise UserError(
                f"{RAW_ROWS}: {kept} usable rows leave none for {name}; bring more rows, or raise its share"
            )


if __name__ == "__main__":
    main()
