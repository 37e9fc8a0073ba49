"""Fetch the raw rows: copy local files, or download them from the hub.

params:  profiles.<profile>.data
writes:  data/raw/rows/, and data/raw/test/ where held-out rows come from a place of their own
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from howto.core.atomic import atomic_folder
from howto.core.errors import UserError, reports_errors
from howto.core.hashing import check_sha256
from howto.core.output_lock import output_lock
from howto.core.paths import RAW
from howto.params import read_params
from howto.sources.config import Data, RowSource
from howto.sources.files import copy_files, is_local, local_files, row_files, unread_files


@reports_errors
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sources = read_params().section(Data).sources()
    with output_lock(RAW), atomic_folder(RAW) as folder:
        done = {name: fetch(rows, folder / name) for name, rows in sources.items()}
    for name, what in done.items():
        print(f"fetch_data: {what} -> {RAW / name}")


def fetch(rows: RowSource, folder: Path) -> str:
    """Copy or download the rows of one source into `folder`, and describe them.

    Raises:
        UserError: the source cannot be read, has no rows, or has another sha256 than params.yaml.
    """
    folder.mkdir()
    if is_local(rows.source, rows.revision, rows.key):
        names, done = copy(rows, folder), f"copied {rows.source}"
    else:
        names, done = download(rows, folder)
    digest = check_sha256(folder, names, rows.sha256, rows.source)
    return f"{done}: {len(names)} file{'s' if len(names) > 1 else ''}, sha256 {digest}"


def copy(rows: RowSource, folder: Path) -> list[str]:
    """Copy the files of a local source, and return their names. Raises as `fetch`."""
    source = Path(rows.source).expanduser()
    if rows.config or rows.split:
        raise UserError(f"params.yaml: {rows.key}: {rows.source!r} is a local path. Remove `config` and `split`.")
    real, raw = source.resolve(), RAW.resolve()
    if real.is_relative_to(raw) or raw.is_relative_to(real):
        raise UserError(f"{source}: it overlaps with {RAW}, which this stage replaces. Keep your rows elsewhere.")
    files = local_files(source, rows.file, rows.key)
    names = row_files(files, rows.file, rows.source, rows.key) if source.is_dir() else list(files)
    report_unread(rows, files)
    copy_files({name: files[name] for name in names}, folder)
    return names


def download(rows: RowSource, folder: Path) -> tuple[list[str], str]:
    """Download the rows of a source on the hub, and return the files' names and a description. Raises as `fetch`."""
    from howto.sources.hub import open_repository
    from howto.sources.hub_splits import declares_configs, write_split

    repository = open_repository(rows.source, "dataset", rows.revision)
    done = f"downloaded {rows.source} at revision {repository.commit}"
    if rows.config or rows.split or (not rows.file and declares_configs(repository)):
        return ["rows.jsonl"], f"{done}, {write_split(repository, rows, folder / 'rows.jsonl')}"
    names = row_files(repository.names, rows.file, rows.source, rows.key)
    report_unread(rows, repository.names)
    copy_files(repository.fetch(names), folder)
    return names, done


def report_unread(rows: RowSource, names: Collection[str]) -> None:
    """Name the files of a source that are left out, unless params.yaml selects some."""
    if not rows.file and (unread := unread_files(names)):
        print(f"fetch_data: {rows.source}: {unread}")


if __name__ == "__main__":
    main()
