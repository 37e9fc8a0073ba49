"""Rows of one configuration and split of a data set on the hub, as the `datasets` library defines them.

That library reads the configurations from the README's YAML and finds the files of each split. It does so in a folder
of empty files with the repository's names, and reads the split's own files once they are downloaded. So every download
goes through `howto.sources.hub`, and no file of another split is fetched.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from howto.core.errors import UserError, one_line
from howto.sources.config import Source
from howto.sources.dataset_rows import choose, write_rows
from howto.sources.hub import Repository

README = "README.md"
CONFIGS_IN_FRONT_MATTER = re.compile(r"---\s*\n(?:(?!---).*\n)*?configs:")


def declares_configs(repository: Repository) -> bool:
    """Return whether the README of a data set names configurations."""
    if README not in repository.names:
        return False
    text = repository.fetch([README])[README].read_text(encoding="utf-8", errors="replace")
    return CONFIGS_IN_FRONT_MATTER.match(text) is not None


def write_split(repository: Repository, rows: Source, key: str, path: Path) -> str:
    """Write the rows of one split to `path` as JSONL, and describe configuration and split.

    Without `rows.config`, take the default or only configuration; without `rows.split`, "train" or the only split.
    `key` names `rows` in messages, such as "data.".

    Raise UserError if there is no such configuration or split, or `datasets` cannot read its files.
    """
    import datasets
    import pyarrow

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        for name in repository.names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        if README in repository.names:
            _link(repository, [README], folder)
        try:
            configs = datasets.get_dataset_config_names(str(folder))
            default = datasets.get_dataset_default_config_name(str(folder))
            config = choose(rows.config, default, configs, key + "config")
            builder = datasets.load_dataset_builder(str(folder), config, cache_dir=str(folder / ".cache"))
            files = builder.config.data_files
            splits = [str(name) for name in files]
            split = choose(rows.split, "train", splits, key + "split")
            for other in set(splits) - {split}:  # whose files are empty here
                del files[other]
            _link(repository, [Path(file).relative_to(folder).as_posix() for file in files[split]], folder)
            write_rows(builder.as_streaming_dataset(split), path)
        except (
            datasets.exceptions.DatasetsError,
            pyarrow.ArrowException,
            ValueError,
            FileNotFoundError,
            ImportError,
        ) as error:
            problem = f"the datasets library cannot read it ({one_line(error)})"
            raise UserError(f"{rows.source}: {problem}. Name its files in `file`.") from None
    return f"configuration {config} (of {', '.join(configs)}), split {split} (of {', '.join(splits)})"


def _link(repository: Repository, names: Sequence[str], folder: Path) -> None:
    for name, path in repository.fetch(names).items():
        (folder / name).unlink()
        (folder / name).symlink_to(path)
