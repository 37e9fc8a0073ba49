"""What a source in params.yaml names, and which of its files hold rows."""

import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from howto.core.errors import UserError

ROW_FILE = re.compile(r"\.((jsonl?|ndjson|csv|tsv)(\.(gz|bz2|xz|zst))?|parquet|arrow)$", re.IGNORECASE)
EXPECTED = ".jsonl, .ndjson, .json, .csv, .tsv (each also as .gz, .bz2, .xz or .zst), .parquet or .arrow"
DOCUMENTS = ("README*", "LICENSE*")  # unless their ending is that of a file with rows
# The JSON that the `datasets` library writes beside rows. Its state.json is beside files of Arrow.
METADATA, STATE = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json"), "state.json"
CACHE = "cache-*.arrow"  # what that library computed from rows; it is not read, and named


def is_local(source: str, hub_only: str | None, key: str) -> bool:
    """Return whether `source` is a path on this machine; otherwise it is a hub id, `owner/name`.

    `hub_only` is what params.yaml selects in a hub repository, such as a revision. `key` is that of `source`.

    Raise UserError if it is neither, or a path with a revision, configuration or split.
    """
    path = Path(source).expanduser()
    named = ROW_FILE.search(source) or path.suffix.lower() == ".gguf" or source.startswith((".", "~"))
    if named or path.exists() or path.is_absolute():
        if hub_only:
            raise UserError(f"params.yaml: {key}: {source!r} is a local path, which has no {hub_only!r}. Remove that.")
        return True
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return False
    raise UserError(f"params.yaml: {key}: expected a path or a hub id (owner/name), got {source!r}.")


def row_files(names: Iterable[str], pattern: str | None, source: str, key: str) -> list[str]:
    """Return the files of a folder or a repository that hold rows, sorted.

    `names` are relative to it, with "/" on every system. `pattern` is one of them, or such as "data/train-*.parquet".
    `source` and `key` name the folder and the parameter in the message. Hidden files and metadata are left out.

    Raise UserError if there is none.
    """
    names = sorted(names)
    if found := [name for name in _chosen(names, pattern) if is_row_file(name)]:
        return found
    what = f"no file that matches {pattern!r} and" if pattern else "no file that"
    has = f"it has {_some(names)}" if names else "it is empty"
    raise UserError(f"{source}: {what} ends in {EXPECTED}; {has}. Correct {key} in params.yaml.")


def is_row_file(name: str) -> bool:
    """Return whether a file of this name, relative to its data folder, holds rows."""
    return bool(ROW_FILE.search(name)) and not _is_ignored(name) and not fnmatchcase(_file(name), CACHE)


def unread_files(names: Iterable[str], pattern: str | None, read: Collection[str]) -> str:
    """Return a line with the number and the first names of the files in which rows may be missed; "" for none.

    Those that match `pattern`, if there is one, and are not among the files that are `read`.
    """
    unread = [name for name in _chosen(sorted(names), pattern) if name not in read and not _is_ignored(name)]
    return f"{len(unread)} file{'s' if len(unread) > 1 else ''} not read ({_some(unread)})" if unread else ""


def saved_folders(names: Iterable[str]) -> list[str]:
    """Return the folders that `datasets` saved, those in which a state.json is beside files of Arrow."""
    return sorted({str(PurePosixPath(name).parent) for name in names if _file(name) == STATE} & _with_arrow(names))


def local_files(source: Path, pattern: str | None, key: str) -> dict[str, Path]:
    """Return all files at `source`, a file with rows or a folder, by their names relative to it.

    Hidden files are left out. `key` names the parameter in messages. Raise UserError if nothing is there, or a file
    without rows, or a link that leads out of the folder or to another one. Raise PermissionError if a folder may not be
    listed.
    """
    if source.is_dir():
        return dict(_walk(source))
    if not source.is_file():
        raise UserError(f"{source}: no such file or folder. Correct {key} in params.yaml.")
    if not ROW_FILE.search(source.name):
        raise UserError(f"{source}: expected a file that ends in {EXPECTED}, or a folder of such files.")
    if pattern:
        raise UserError(f"params.yaml: {key}: {str(source)!r} is a single file. Remove `file`.")
    return {source.name: source}


def copy_files(files: Mapping[str, Path], folder: Path) -> None:
    """Copy each file, byte for byte, to its name in `folder`."""
    for name, path in files.items():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _chosen(names: list[str], pattern: str | None) -> list[str]:
    """Return the names that match the pattern, without the state of what `datasets` saved."""
    states = {str(PurePosixPath(folder, STATE)) for folder in saved_folders(names)}
    return [name for name in names if name not in states and (pattern in (None, name) or fnmatchcase(name, pattern))]


def _with_arrow(names: Iterable[str]) -> set[str]:
    return {str(PurePosixPath(name).parent) for name in names if name.lower().endswith(".arrow")}


def _file(name: str) -> str:
    return name.rpartition("/")[2]


def _is_ignored(name: str) -> bool:
    """Return whether a file is hidden, a document or metadata."""
    file = _file(name)
    is_document = any(fnmatchcase(file, pattern) for pattern in DOCUMENTS) and not ROW_FILE.search(file)
    return any(part.startswith(".") for part in name.split("/")) or is_document or file in METADATA


def _walk(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name relative to `root`, path) of every file that is not hidden. Raises as `local_files`."""

    def stop(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(root, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if Path(folder, name).is_symlink()]  # which `os.walk` does not follow
        for path in (Path(folder, name) for name in [*files, *links] if not name.startswith(".")):
            name, real = path.relative_to(root).as_posix(), Path(os.path.realpath(path))
            is_inside = real.is_file() and real.is_relative_to(root.resolve())
            if not is_inside and (is_row_file(name) or not path.is_file()):
                raise UserError(
                    f"{path}: expected a file in {root}, got a link that leads out of it, to a folder or to nothing, "
                    "or a pipe. Put the file itself there."
                )
            yield name, path
