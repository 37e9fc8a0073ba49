"""What `source` in params.yaml can name, and which of the files there are of use."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from howto.core.errors import UserError

# What rows are read from.
ROW_FILES = (".jsonl", ".json", ".csv", ".parquet")
# JSON that Hugging Face's own tools lay beside the rows.
ABOUT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
# What a model folder is made of: no pickled weights, no code, and of the weights those that transformers loads.
WEIGHTS = ("model.safetensors", "model-*.safetensors")
TOKENIZER = ("tokenizer.model", "vocab.txt", "merges.txt", "*.jinja")
GGUF = ".gguf"  # llama.cpp's format, which `fetch_model` converts
MODEL_FILES = (*WEIGHTS, *TOKENIZER, "*.json", "LICENSE", "LICENSE.txt", "LICENSE.md")


def is_local(source: str, revision: str | None, key: str) -> bool:
    """Whether `source` is a path on this machine (else it is a hub id, `owner/name`).

    `key` is where it stands in params.yaml, such as "data.source".

    Raises:
        UserError: it is neither, or a path with a revision.
    """
    path = Path(source).expanduser()
    files = (*ROW_FILES, GGUF)
    if path.exists() or path.is_absolute() or source.startswith((".", "~")) or path.suffix.lower() in files:
        if revision:
            raise UserError(f"params.yaml: {key} {source!r} is a local path, which has no revision; set that to null")
        return True
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return False
    raise UserError(f"params.yaml: {key} {source!r} is neither a path nor a hub id (owner/name); mend it")


def row_files(names: Iterable[str], pattern: str | None, said: str, key: str) -> list[str]:
    """Those of the files in a folder or a repository that hold rows, in the order of their names.

    `names` are relative to it, with "/" on every system; `pattern` is one of them, or a pattern such as
    "data/train-*.parquet". Hidden files are passed over, and so is what only tells about the rows. `said` and
    `key` name folder and parameter in the message.

    Raises:
        UserError: there is none.
    """
    names = sorted(names)
    found = [name for name in names if is_row_file(name) and _matches(name, pattern)]
    if found:
        return found
    has = f"it has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it is empty"
    what = f"no file that matches {pattern!r} and" if pattern else "no file that"
    raise UserError(f"{said}: {what} ends in {', '.join(ROW_FILES)} ({has}); mend {key} in params.yaml")


def is_row_file(name: str) -> bool:
    """Whether a file of this name, relative to its data folder, is one with rows."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in ROW_FILES and path.name not in ABOUT_ROWS and not hidden


def model_files(names: Iterable[str], said: str) -> list[str]:
    """Those of the files in a folder or a repository that a model is made of. Sub-folders hold other formats of it.

    Raises:
        UserError: there is no configuration, or there are no weights.
    """
    names = [name for name in sorted(names) if "/" not in name and any(fnmatchcase(name, p) for p in MODEL_FILES)]
    if "config.json" not in names:
        raise UserError(f"{said}: not a Hugging Face model (no config.json in it); mend model.source in params.yaml")
    if not weight_files(names):
        raise UserError(
            f"{said}: no model.safetensors weights in it, and pickled ones (.bin) are not loaded; "
            "convert them, or take another model in params.yaml"
        )
    return names


def gguf_file(names: Iterable[str], wanted: str) -> list[str]:
    """Return [`wanted`] if a repository has a file of that name.

    Raises:
        UserError: it has none; the message lists its GGUF files.
    """
    names = list(names)
    if wanted in names:
        return [wanted]
    has = ", ".join(sorted(name for name in names if name.endswith(GGUF))) or "no .gguf file at all"
    raise UserError(f"params.yaml: model.file: the repository has no {wanted}; it has {has}. Name one of its files.")


def weight_files(names: Iterable[str]) -> list[str]:
    """The weights among the files of a model."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in WEIGHTS)]


def copy_files(files: Mapping[str, Path], folder: Path) -> None:
    """Copy each file, byte for byte, to its name in `folder`."""
    for name, path in files.items():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def _matches(name: str, pattern: str | None) -> bool:
    return pattern is None or name == pattern or fnmatchcase(name, pattern)
