"""Bring the base model: train the embedded one, copy a local folder, or download one from the hub.

params:  profiles.<profile>.model (and, to train the embedded one, machine)
writes:  models/base/ (a Hugging Face folder)
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from howto.checksum import check_sha256
from howto.params.file import read_params
from howto.params.machine import Machine, ProfileMachine
from howto.params.model import EmbeddedModel, Model, OutsideModel
from howto.source import MODEL_FILES, is_local
from howto.stop import Stop, stops_cleanly
from howto.whole import whole_folder

BASE = Path("models/base")


@stops_cleanly
def main() -> None:
    """Run the stage."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    params = read_params()
    model = params.section(Model).root
    with whole_folder(BASE) as folder:
        if isinstance(model, EmbeddedModel):
            from howto.torch_setup import set_up_torch

            # The embedded model is made on the CPU, in float32, whatever the profile: it has the same bytes then.
            cpu = ProfileMachine(device="cpu", precision="float32")
            set_up_torch(params.section(Machine), cpu)

            from howto.embedded.base_model import make_base_model

            parameters = make_base_model(model, folder)
            said = f"trained the embedded model of {parameters:,} parameters from seed {model.seed}"
        elif is_local(model.source):
            said = copy(model, folder)
        else:
            said = download(model, folder)
    print(f"fetch_model: {said} -> {BASE}")


def copy(model: OutsideModel, folder: Path) -> str:
    """Copy the weights, the configuration and the tokenizer of a local Hugging Face folder.

    Raises:
        Stop: no such folder, or it has no safetensors weights.
    """
    source = Path(model.source).expanduser()
    if not (source / "config.json").is_file():
        raise Stop(f"{source}: not a Hugging Face folder (no config.json in it); mend model.source in params.yaml")
    for pattern in MODEL_FILES:
        for path in sorted(source.glob(pattern)):
            shutil.copyfile(path, folder / path.name)
    _check_weights(model, folder)
    return f"copied {source}"


def download(model: OutsideModel, folder: Path) -> str:
    """Download weights, configuration and tokenizer from the hub.

    Raises:
        Stop: the network, the hub or the weights are not as they should be.
    """
    from howto.hub import download_folder

    download_folder(model.source, model.revision, MODEL_FILES, folder)
    _check_weights(model, folder)
    return f"downloaded {model.source} at {model.revision or 'its newest revision'}"


def _check_weights(model: OutsideModel, folder: Path) -> None:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise Stop(f"{model.source}: no .safetensors weights in it; pickled weights (.bin) are not loaded")
    if model.weights_sha256:
        if len(weights) > 1:
            raise Stop(f"{model.source}: weights_sha256 is for a single file, and there are {len(weights)}; remove it")
        check_sha256(weights[0], model.weights_sha256, f"{model.source}/{weights[0].name}")


if __name__ == "__main__":
    main()
