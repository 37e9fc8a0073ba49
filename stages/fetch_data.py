"""Fetch the raw rows: copy local files, or download them from the hub.

params:  profiles.<profile>.data
writes:  data/raw/rows/, and data/raw/test/ where held-out rows come from a place of their own;
         of several sources data/raw/rows/<name>/, and their names and shares to data/raw/sources.json
"""

import argparse
import os
import sys
from collections.abc import Collection
from pathlib import Path

from howto.core.atomic import atomic_folder, write_json
from howto.core.errors import UserError, reports_errors
from howto.core.hashing import check_sha256
from howto.core.output_lock import output_lock
from howto.core.paths import RAW, RAW_ROWS, RAW_SOURCES, RAW_TEST
from howto.params import read_params
from howto.sources.config import Data, Source
from howto.sources.dataset_rows import is_saved, write_saved
from howto.sources.files import copy_files, is_local, local_files, row_files, saved_folders, unread_files

ROWS = "rows.jsonl"  # of a split


@reports_errors
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when a library imports it
    data = read_params().section(Data)
    with output_lock(RAW), atomic_folder(RAW) as folder:
        done = []
        for name, source in data.by_name().items():
            key, rows = f"data.sources.{name}." if name else "data.", Path(RAW_ROWS.name, name)
            done.append(f"{fetch(source, key, folder / rows)} -> {RAW / rows}")
        if data.sources:
            write_json(folder / RAW_SOURCES.name, {name: source.share for name, source in data.by_name().items()})
        if test := data.test():
            done.append(f"{fetch(test, 'data.test_', folder / RAW_TEST.name)} -> {RAW_TEST}")
    print("\n".join(f"fetch_data: {line}" for line in done))


def fetch(data: Source, key: str, folder: Path) -> str:
    """Copy or download the rows of one source into `folder`, and describe them. `key` names `data` in messages.

    Raise UserError if the source cannot be read, has no rows, or has another sha256 than params.yaml.
    """
    folder.mkdir(parents=True)
    source, raw = Path(data.source).expanduser(), RAW.resolve()
    saved = is_saved(source) and not data.file
    hub_only = data.revision or data.config or (None if saved else data.split)
    if is_local(data.source, hub_only, f"{key}source"):
        real = Path(os.path.realpath(source))
        if real.is_relative_to(raw) or raw.is_relative_to(real):
            raise UserError(f"{source}: it overlaps with {RAW}, which this stage replaces. Keep your rows elsewhere.")
        files = local_files(source, data.file, f"{key}source")
        done = f"copied {data.source}"
        if saved:
            names = [ROWS]
            done += f", {write_saved(data, key, folder / ROWS)}"
            print_unread(data, files, [name for name in files if name.endswith(".arrow")])
        else:
            names = select(data, key, files) if source.is_dir() else list(files)
            copy_files({name: files[name] for name in names}, folder)
    else:
        from howto.sources.hub import open_repository
        from howto.sources.hub_splits import declares_configs, write_split

        repository = open_repository(data.source, "dataset", data.revision)
        done = f"downloaded {data.source} at revision {repository.commit}"
        if data.config or data.split or (not data.file and declares_configs(repository)):
            names = [ROWS]
            done += f", {write_split(repository, data, key, folder / ROWS)}"
        else:
            names = select(data, key, repository.names)
            copy_files(repository.fetch(names), folder)
    digest = check_sha256(folder, names, data.sha256, data.source)
    return f"{done} ({len(names)} file{'s' if len(names) > 1 else ''}, sha256 {digest})"


def select(data: Source, key: str, names: Collection[str]) -> list[str]:
    """Return the files with rows, and print which others of the source are left out. Raises as `fetch`."""
    selected = row_files(names, data.file, data.source, f"{key}source")
    if not data.file and (folders := saved_folders(names)):
        first = f"{folders[0]} is a data set that `save_to_disk` wrote"
        raise UserError(
            f"{data.source}: {first}. Name a folder of that kind in {key}source, or its files in {key}file."
        )
    print_unread(data, names, selected)
    return selected


def print_unread(data: Source, names: Collection[str], read: Collection[str]) -> None:
    """Print which files of a source are not read and may have rows."""
    if unread := unread_files(names, data.file, read):
        print(f"fetch_data: {data.source}: {unread}")


if __name__ == "__main__":
    main()
