"""Bring the base model: train the embedded one, copy a local folder, or download one from the hub.

params:  profiles.<profile>.model (and, to train the embedded one, machine)
writes:  models/base/ (a Hugging Face folder)
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from howto.alone import alone
from howto.checksum import check_sha256
from howto.model_folder import check_model
from howto.params.file import read_params
from howto.params.machine import Machine, ProfileMachine
from howto.params.model import EmbeddedModel, Model, OutsideModel
from howto.source import copy_files, is_local, model_files
from howto.stop import Stop, stops_cleanly
from howto.whole import whole_folder

BASE = Path("models/base")


@stops_cleanly
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params()
    model = params.section(Model).root
    with alone(BASE), whole_folder(BASE) as folder:
        if isinstance(model, EmbeddedModel):
            from howto.torch_setup import set_up_torch

            # The embedded model is made on the CPU, in float32, whatever the profile: it has the same bytes then.
            cpu = ProfileMachine(device="cpu", precision="float32")
            set_up_torch(params.section(Machine), cpu)

            from howto.embedded.base_model import make_base_model

            parameters = make_base_model(model, folder)
            said = f"trained the embedded model of {parameters:,} parameters from seed {model.seed}"
        else:
            said = bring(model, folder)
    print(f"fetch_model: {said} -> {BASE}")


def bring(model: OutsideModel, folder: Path) -> str:
    """Copy or download the weights, the configuration and the tokenizer of a model, and say which they are.

    Raises:
        Stop: the source cannot be had, is no whole model, or its weights have not the wanted sha256.
    """
    if is_local(model.source, model.revision, "model.source"):
        source = Path(model.source).expanduser()
        if not source.is_dir():
            raise Stop(f"{source}: no such folder; mend model.source in params.yaml")
        files = {path.name: path for path in source.iterdir() if path.is_file()}
        copy_files({name: files[name] for name in model_files(files, str(source))}, folder)
        return f"copied {source} ({checked(model, folder)})"

    from howto.hub import downloaded

    choose = partial(model_files, said=model.source)
    with downloaded(model.source, "model", model.revision, choose) as snapshot:
        copy_files(snapshot.files, folder)
        return f"downloaded {model.source} at revision {snapshot.commit} ({checked(model, folder)})"


def checked(model: OutsideModel, folder: Path) -> str:
    """Check the model and say the sha256 of its weights. Raises as `bring`."""
    weights = check_model(folder, model.source)
    digest = check_sha256(folder, weights, model.weights_sha256, f"the weights of {model.source}")
    return f"sha256 of the weights {digest}"


if __name__ == "__main__":
    main()
