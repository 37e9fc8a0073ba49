"""Let the base model or the fine-tuned one answer every held-out row.

reads:   data/prepared/test.jsonl, models/base/ (and models/adapter/)
params:  infer, machine, profiles.<profile>.infer, profiles.<profile>.machine
writes:  data/predictions/base.jsonl, or data/predictions/adapter.jsonl

A killed run resumes from models/checkpoints/ unless its inputs changed. The rows are shared among as many processes as
there are GPUs, or --processes; their number changes no byte.
"""

from __future__ import annotations

import argparse
import shutil
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from howto.core.config import Params
from howto.core.errors import reports_errors
from howto.core.output_lock import output_lock
from howto.core.paths import ADAPTER, BASE, CHECKPOINTS, PREDICTIONS, TEST
from howto.core.schema import Prediction, Row, read_rows, write_rows
from howto.inference.config import Infer, ProfileInfer
from howto.modeling.config import Machine, ProfileMachine
from howto.modeling.distributed.launch import host_count, in_process_group, launch, processes_per_host
from howto.params import read_params

if TYPE_CHECKING:
    import torch

    from howto.inference.generator import Answering
    from howto.modeling.distributed.process_group import ProcessGroup

CODE = (
    "howto/__init__.py",
    "howto/core",
    "howto/inference",
    "howto/modeling",
    "stages/__init__.py",
    "stages/infer.py",
)
OTHERS = 2  # journals of runs with other inputs, which did not end, that are kept: such a run may yet go on
LONGEST = timedelta(days=7)  # that a process waits for another one to finish its share


@reports_errors
def main() -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("base", "adapter"), required=True, help="the model that answers")
    parser.add_argument("--processes", metavar="N", type=int, help="share the rows among N (default: one for each GPU)")
    arguments = parser.parse_args()
    if arguments.processes is not None and arguments.processes < 1:
        parser.error("--processes is 1 or more")
    params = read_params()
    with output_lock(PREDICTIONS / f"{arguments.stage}.jsonl"):
        predict(params, arguments.stage, arguments.processes)


def predict(params: Params, model: str, processes: int | None = None) -> None:
    """Write the model's answers to every test row, in the order of the rows, and of the seeds within a row.

    Where a prompt is longer than the model can read, or than params allow, its context is shortened; an intent that
    is too long by itself gets an empty answer, which scores 0. `processes`, over all hosts, share the rows; None: one
    for each GPU.
    """
    rows = read_rows(TEST, Row)
    shared, profile = params.section(Infer), params.section(ProfileInfer)
    decoding = profile.decoding(shared)

    from howto.modeling.torch_setup import set_up_torch, versions

    machine = params.section(ProfileMachine)
    device = set_up_torch(params.section(Machine), machine)
    if not in_process_group():
        here = processes_per_host(processes, "--processes") if processes else _gpus(device)
        if here > 1 or host_count() > 1:
            number = ["--processes", str(processes)] if processes else []
            launch("stages.infer", ["--stage", model, *number], here)
            return

    from howto.inference.generator import Answering
    from howto.modeling.distributed.process_group import join_process_group
    from howto.modeling.fingerprint import Fingerprint

    adapter = ADAPTER if model == "adapter" else None
    with join_process_group(processes, device, "--processes", timeout=LONGEST) as group:
        fingerprint = Fingerprint(
            [TEST, BASE, *filter(None, [adapter])], params, [Infer, ProfileInfer, Machine, ProfileMachine], CODE
        )
        group.check_same(fingerprint.parts(model=model, **versions(group.device)))
        folder = CHECKPOINTS / f"infer-{model}-{fingerprint.key(model=model, **versions(group.device))}"
        answering = Answering(
            BASE, adapter, decoding, batch_size=profile.batch_size, precision=machine.precision, device=group.device
        )
        predictions = answer(answering, rows, decoding.seeds, folder, bar=f"infer {model}", group=group)
        if group.rank == 0:
            fingerprint.check()
            write_rows(PREDICTIONS / f"{model}.jsonl", predictions)
        group.broadcast(None)  # until they are written, what another host has may be needed again
        if group.local_rank == 0:
            _remove(folder, model)
    if group.rank == 0:
        ended = sum(prediction.stop == "eos" for prediction in predictions)
        print(
            f"infer: {len(predictions)} answers by {model}, {ended} ended by the model -> {PREDICTIONS / model}.jsonl"
        )


def answer(
    answering: Answering, rows: list[Row], seeds: list[int], folder: Path, *, bar: str, group: ProcessGroup
) -> list[Prediction]:
    """The predictions for all rows and seeds; those that are in a journal in `folder` are not made again.

    Each process writes a journal of its own; taken up are those of all, however many processes wrote them.
    """
    from howto.inference.resume_log import journal, records

    inputs = answering.fit(rows)
    references = answering.references(rows, inputs, group)
    paths = sorted(folder.glob("answers*.jsonl")) if group.local_rank == 0 else []
    ready = group.all_gather([prediction for path in paths for prediction in records(path, Prediction)])
    found = {(prediction.id, prediction.seed): prediction for part in ready for prediction in part}
    missing = [(number, seed) for number, row in enumerate(rows) for seed in seeds if (row.id, seed) not in found]
    own = []
    number_of_journal = f"-{group.rank}" if group.rank else ""
    shown = bar if group.size == 1 else f"{bar}, process 1 of {group.size}" if group.rank == 0 else ""
    with journal(folder / f"answers{number_of_journal}.jsonl", Prediction) as answers:
        for number, seed, given in answering.answers(rows, inputs, group.shard(missing), bar=shown):
            tokens, log_probability = references[number]
            prediction = Prediction(
                id=rows[number].id,
                seed=seed,
                text=given.text,
                prompt_tokens=given.prompt_tokens,
                new_tokens=given.new_tokens,
                stop=given.stop,
                reference_tokens=tokens,
                reference_log_probability=log_probability,
            )
            own.append(prediction)
            answers.add(prediction)
    found |= {(prediction.id, prediction.seed): prediction for part in group.all_gather(own) for prediction in part}
    shortened = sum(text is not None and text != row.input for row, text in zip(rows, inputs, strict=True))
    if shortened and group.rank == 0:
        print(f"infer: {shortened} contexts were shortened to prompts of {answering.longest_prompt} tokens")
    return [found[row.id, seed] for row in rows for seed in seeds]


def _gpus(device: torch.device) -> int:
    import torch

    return torch.cuda.device_count() if device.type == "cuda" else 1


def _remove(folder: Path, model: str) -> None:
    """Remove the journals of this run, and of other runs all but the latest."""
    shutil.rmtree(folder, ignore_errors=True)
    others = sorted(CHECKPOINTS.glob(f"infer-{model}-*"), key=lambda path: path.stat().st_mtime)
    for old in others[:-OTHERS]:
        shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    main()
