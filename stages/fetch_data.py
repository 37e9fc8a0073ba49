"""Fetch the raw rows: copy local files, or download them from the hub.

params:  profiles.<profile>.data
writes:  data/raw/rows/, and data/raw/test/ where held-out rows come from a place of their own
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from howto.core.atomic import atomic_folder
from howto.core.errors import UserError, reports_errors
from howto.core.hashing import check_sha256
from howto.core.output_lock import output_lock
from howto.core.paths import RAW
from howto.params import read_params
from howto.sources.config import Data, RowSource
from howto.sources.files import copy_files, is_local, row_files
from howto.sources.shards import local_shards


@reports_errors
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params()
    data = params.section(Data)
    done = {}
    with output_lock(RAW), atomic_folder(RAW) as folder:
        done["rows"] = bring(data.rows(), folder / "rows")
        if test := data.test():
            done["test"] = bring(test, folder / "test")
    for name, what in done.items():
        print(f"fetch_data: {what} -> {RAW / name}")


def bring(rows: RowSource, folder: Path) -> str:
    """Copy or download the files of one source as they are, and say which they are.

    Raises:
        UserError: the source cannot be had, holds no rows, or its files have not the wanted sha256.
    """
    if is_local(rows.source, rows.revision, rows.key):
        source = Path(rows.source).expanduser()
        if _overlap(source.resolve(), RAW.resolve()):
            raise UserError(
                f"{source}: it overlaps with {RAW}, which this stage replaces; keep your rows in another folder"
            )
        shards = local_shards(source, rows.file, rows.key)
        copy_files(shards, folder)
        return f"copied {source} ({checked(rows, folder, shards)})"

    from howto.sources.hub import downloaded

    choose = partial(row_files, pattern=rows.file, said=rows.source, key=rows.key)
    with downloaded(rows.source, "dataset", rows.revision, choose) as snapshot:
        copy_files(snapshot.files, folder)
        return f"downloaded {rows.source} at revision {snapshot.commit} ({checked(rows, folder, snapshot.files)})"


def checked(rows: RowSource, folder: Path, files: dict[str, Path]) -> str:
    """Check the sha256 of the files that were brought, and say it. Raises as `bring`."""
    digest = check_sha256(folder, list(files), rows.sha256, rows.source)
    return f"{len(files)} file{'s' if len(files) > 1 else ''}, sha256 {digest}"


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


if __name__ == "__main__":
    main()
