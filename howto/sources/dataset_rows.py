"""Rows of the `datasets` library: folders that its `save_to_disk` wrote, and how a row becomes a line of JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from howto.core.errors import UserError, one_line
from howto.sources.config import Source

if TYPE_CHECKING:
    from datasets import IterableDataset

SPLITS, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"  # the files that `save_to_disk` writes


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote this folder."""
    return (folder / SPLITS).is_file() or ((folder / STATE).is_file() and (folder / INFO).is_file())


def write_saved(data: Source, key: str, path: Path) -> str:
    """Write the rows of the folder `data.source` to `path` as JSONL, and describe their split.

    Of several splits take `data.split`, or else "train" or the only one. `key` names `data` in messages.

    Raise UserError if there is no such split, or the folder is damaged.
    """
    import datasets

    datasets.config.TORCH_AVAILABLE = False  # else it imports torch
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    folder = Path(data.source).expanduser()
    split, done = None, "saved by datasets"
    try:
        if (folder / SPLITS).is_file():
            splits = json.loads((folder / SPLITS).read_bytes())["splits"]
            split = choose(data.split, "train", splits, key + "split")
            done += f", split {split} (of {', '.join(splits)})"
        elif data.split:
            raise UserError(f"params.yaml: {key}split: {data.source} has no splits. Remove it.")
        write_rows(datasets.load_from_disk(str(folder / split if split else folder)).to_iterable_dataset(), path)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of the library, of any kind, on a damaged folder
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
            raise
        raise UserError(
            f"{data.source}: the datasets library cannot read it ({one_line(error)}). Save it again."
        ) from None
    return done


def write_rows(rows: "IterableDataset", path: Path) -> None:
    """Write rows as JSONL. Labels become their names.

    A date, an image and the like become an object, which `prepare` rejects as no text where it expects one.
    """
    labels = {name: label for name, label in (rows.features or {}).items() if hasattr(label, "int2str")}
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows.decode(False):  # images and sounds stay bytes
            names = {name: label.int2str(row[name]) for name, label in labels.items() if row.get(name) is not None}
            file.write(json.dumps(row | names, ensure_ascii=False, default=_as_object) + "\n")


def choose(name: str | None, default: str | None, names: Sequence[str], key: str) -> str:
    """Return the name that params give, or else the default or only one. Raise UserError if there is no such name."""
    chosen = name or (default if default in names else names[0] if len(names) == 1 else None)
    if chosen in names and chosen is not None:
        return chosen
    raise UserError(f"params.yaml: {key}: expected one of {', '.join(names)}; got {name or 'none'}.")


def _as_object(value: Any) -> dict[str, str]:
    return {type(value).__name__: f"{len(value)} bytes" if isinstance(value, bytes) else str(value)}
