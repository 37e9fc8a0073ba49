"""The files of a local data source: one file, or a folder of shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from howto.core.errors import UserError
from howto.sources.files import ROW_FILES, is_row_file, row_files


def local_shards(source: Path, pattern: str | None, key: str) -> dict[str, Path]:
    """The data files at `source`, by their names relative to it, in the order of these names.

    `pattern` picks some of a folder's files, as in `row_files`. `key` names the parameter in messages.

    Raises:
        UserError: nothing is there, it holds no rows, or a link in the folder leads out of it.
        PermissionError: a folder may not be listed.
    """
    if source.is_dir():
        files = dict(_walk(source, source, [source.resolve()]))
        return {name: files[name] for name in row_files(files, pattern, str(source), key)}
    if not source.is_file():
        raise UserError(f"{source}: no such file or folder; mend {key} in params.yaml")
    if source.suffix.lower() not in ROW_FILES:
        raise UserError(f"{source}: a file that ends in {', '.join(ROW_FILES)} is wanted, or a folder of such files")
    if pattern:
        raise UserError(
            f"params.yaml: {key} {str(source)!r} is a single file, in which none can be chosen; remove `file`"
        )
    return {source.name: source}


def _walk(folder: Path, root: Path, above: list[Path]) -> Iterator[tuple[str, Path]]:
    """(name relative to `root`, path) of every file but the hidden ones. `above`: root and parents, links resolved."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        name = path.relative_to(root).as_posix()
        if path.is_file() and not is_row_file(name):
            yield name, path
            continue
        target = _inside(path, above[0])
        if not path.is_dir():
            yield name, path
        elif target not in above:  # a link to a folder around it would go on for ever
            yield from _walk(path, root, [*above, target])


def _inside(path: Path, root: Path) -> Path:
    """Where `path` really lies.

    Raises:
        UserError: that is nowhere, not in `root`, or it is neither a file nor a folder.
    """
    try:
        target = path.resolve(strict=True)
    except PermissionError:
        raise
    except (OSError, RuntimeError):  # RuntimeError: links in a circle, before Python 3.13
        raise UserError(f"{path}: a link that leads nowhere; remove it, or bring what is meant") from None
    if not target.is_relative_to(root):
        raise UserError(f"{path}: a link that leaves its data folder (to {target}); put the file itself there")
    if not (target.is_file() or target.is_dir()):
        raise UserError(f"{path}: neither a file nor a folder; remove it from the data folder")
    return target
