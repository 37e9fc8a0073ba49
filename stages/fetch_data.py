"""Bring the raw rows: make the embedded corpus, copy a local file, or download one from the hub.

params:  profiles.<profile>.data
writes:  data/raw/
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from howto.checksum import check_sha256
from howto.params.data import Data, EmbeddedData, OutsideData
from howto.params.file import read_params
from howto.source import is_local
from howto.stop import Stop, stops_cleanly
from howto.whole import whole_folder

RAW = Path("data/raw")


@stops_cleanly
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params()
    data = params.section(Data).root
    with whole_folder(RAW) as folder:
        if isinstance(data, EmbeddedData):
            said = make(data, folder)
        elif is_local(data.source):
            said = copy(data, folder)
        else:
            said = download(data, folder)
    print(f"fetch_data: {said} -> {RAW}")


def make(data: EmbeddedData, folder: Path) -> str:
    """Write the embedded corpus.

    Raises:
        Stop: the embedded world has too few things and jobs for that many rows.
    """
    from howto.embedded.corpus import make_corpus
    from howto.rows import write_rows

    try:
        rows = list(make_corpus(data.seed, data.rows))
    except ValueError as error:
        raise Stop(f"params.yaml: profiles.*.data.rows: {error}") from None
    write_rows(folder / "embedded.jsonl", rows)
    return f"made {len(rows)} embedded rows from seed {data.seed}"


def copy(data: OutsideData, folder: Path) -> str:
    """Copy a local JSONL file.

    Raises:
        Stop: it is missing, is not JSONL by its name, or has not the wanted sha256.
    """
    source = Path(data.source).expanduser()
    if not source.is_file():
        raise Stop(f"{source}: no such file; mend data.source in params.yaml")
    if source.suffix != ".jsonl":
        raise Stop(f"{source}: a file whose name ends in .jsonl is wanted, with one JSON object a line")
    shutil.copyfile(source, folder / source.name)
    digest = check_sha256(folder / source.name, data.sha256, source)
    return f"copied {source} (sha256 {digest})"


def download(data: OutsideData, folder: Path) -> str:
    """Download one file of a data set from the hub.

    Raises:
        Stop: the network, the hub or the file is not as it should be.
    """
    from howto.hub import download_file

    if not data.file:
        raise Stop("params.yaml: profiles.*.data.file: name the .jsonl file in the data set on the hub")
    path = download_file(data.source, data.file, data.revision, folder)
    digest = check_sha256(path, data.sha256, f"{data.source}/{data.file}")
    return f"downloaded {data.source}/{data.file} (sha256 {digest})"


if __name__ == "__main__":
    main()
