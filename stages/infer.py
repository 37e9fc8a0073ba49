"""Let the base model or the fine-tuned one answer every held-out row.

reads:   data/prepared/test.jsonl, models/base/ (and models/adapter/)
params:  infer, machine, profiles.<profile>.infer, profiles.<profile>.machine
writes:  data/predictions/base.jsonl, or data/predictions/adapter.jsonl

A killed run resumes from models/checkpoints/ unless its inputs changed. As many processes as there are GPUs, or
--processes, share the rows; their number changes no byte.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from howto.core.config import Params
from howto.core.errors import UserError, reports_errors
from howto.core.output_lock import output_lock
from howto.core.paths import ADAPTER, BASE, CHECKPOINTS, PREDICTIONS, TEST
from howto.core.schema import Prediction, Row, read_rows, write_rows
from howto.inference.config import Infer, ProfileInfer
from howto.modeling.config import Machine, ProfileMachine
from howto.modeling.distributed.launch import host_count, in_process_group, launch, processes_per_host
from howto.params import read_params

if TYPE_CHECKING:
    from howto.inference.generator import Generator
    from howto.modeling.distributed.process_group import ProcessGroup

CODE = ("howto/__init__.py", "howto/core", "howto/inference", "howto/modeling", "stages/__init__.py", "stages/infer.py")
KEPT_LOGS = 2  # of unfinished runs with other inputs, which may still resume
PATIENCE = timedelta(days=7)  # until a process stops waiting for another one to finish its share


@reports_errors
def main() -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("base", "adapter"), required=True, help="the model that answers")
    parser.add_argument("--processes", metavar="N", type=int, help="share the rows among N (default: one for each GPU)")
    arguments = parser.parse_args()
    if arguments.processes is not None and arguments.processes < 1:
        parser.error("--processes must be 1 or more")
    params = read_params()
    with output_lock(PREDICTIONS / f"{arguments.stage}.jsonl"):
        predict(params, arguments.stage, arguments.processes)


def predict(params: Params, model: str, processes: int | None) -> None:
    """Write the predictions of `model` ("base" or "adapter") for all test rows, in their order."""
    rows = read_rows(TEST, Row)
    profile = params.section(ProfileInfer)
    decoding = profile.decoding(params.section(Infer))
    output = PREDICTIONS / f"{model}.jsonl"

    from howto.modeling.torch_setup import set_up_torch, versions

    machine = params.section(ProfileMachine)
    device = set_up_torch(params.section(Machine), machine)
    if not in_process_group():
        import torch

        gpus = torch.cuda.device_count() if device.type == "cuda" else 1
        here = processes_per_host(processes, "--processes") if processes else gpus
        if here > 1 or host_count() > 1:
            launch("stages.infer", sys.argv[1:], here)
            return

    from howto.inference.generator import Generator
    from howto.modeling.distributed.process_group import join_process_group
    from howto.modeling.fingerprint import Fingerprint

    adapter = ADAPTER if model == "adapter" else None
    inputs = [TEST, BASE, ADAPTER] if adapter else [TEST, BASE]
    with join_process_group(processes, device, "--processes", timeout=PATIENCE) as group:
        fingerprint = Fingerprint(inputs, params, [Infer, ProfileInfer, Machine, ProfileMachine], CODE)
        environment = {"model": model, **versions(group.device)}
        group.check_same(fingerprint.parts(**environment))
        folder = CHECKPOINTS / f"infer-{model}-{fingerprint.key(**environment)}"
        size, precision = profile.batch_size, machine.precision
        generator = Generator.load(BASE, adapter, decoding, batch_size=size, precision=precision, device=group.device)
        predictions = answer_rows(generator, rows, decoding.seeds, folder, group)
        if group.rank == 0:
            fingerprint.check()
            write_rows(output, predictions)
            ended = sum(prediction.stop == "eos" for prediction in predictions)
            print(f"infer: {len(predictions)} answers by {model}, {ended} ended by the model -> {output}")
        group.broadcast(None)  # until the predictions are written, another host may need its logs again
        if group.local_rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            others = sorted(CHECKPOINTS.glob(f"infer-{model}-*"), key=lambda path: path.stat().st_mtime)
            for old in others[:-KEPT_LOGS]:
                shutil.rmtree(old, ignore_errors=True)


def answer_rows(
    generator: Generator, rows: list[Row], seeds: list[int], folder: Path, group: ProcessGroup
) -> list[Prediction]:
    """Return a prediction for each row and seed. Those in the logs in `folder`, one for each process, are kept.

    Raise UserError if every prompt is too long.
    """
    from howto.inference.decoder import Request
    from howto.inference.resume_log import open_log, read_log

    encoded = [generator.encode(row) for row in rows]
    if not any(row.prompt for row in encoded):
        raise UserError(
            f"{TEST}: none of the {len(rows)} prompts fits into {generator.longest_prompt} tokens. Lower "
            "infer.max_new_tokens in params.yaml, raise infer.max_prompt_tokens, or take a model with a larger window."
        )
    log_probabilities = generator.reference_log_probabilities(encoded, group)
    logs = sorted(folder.glob("answers*.jsonl")) if group.local_rank == 0 else []
    found = _gather(group, [prediction for path in logs for prediction in read_log(path, Prediction)])
    missing = [Request(row, seed) for row in encoded for seed in seeds if (row.id, seed) not in found]
    own = []
    with open_log(folder / f"answers{f'-{group.rank}' if group.rank else ''}.jsonl", Prediction) as log:
        for answer in generator.generate(group.shard(missing), progress="" if group.rank else "infer"):
            row = answer.request.row
            prediction = Prediction(
                id=row.id,
                seed=answer.request.seed,
                text=answer.text,
                prompt_tokens=len(row.prompt),
                new_tokens=answer.new_tokens,
                stop=answer.stop,
                reference_tokens=len(row.completion),
                reference_log_probability=log_probabilities.get(row.id),
            )
            log(prediction)
            own.append(prediction)
    found |= _gather(group, own)
    if group.rank == 0 and (too_long := sum(not row.prompt for row in encoded)):
        print(f"infer: {too_long} prompts are longer than {generator.longest_prompt} tokens, and have empty answers")
    if group.rank == 0 and (shortened := sum(row.is_shortened for row in encoded)):
        print(f"infer: {shortened} contexts were shortened to prompts of {generator.longest_prompt} tokens")
    return [found[row.id, seed] for row in rows for seed in seeds]


def _gather(group: ProcessGroup, own: list[Prediction]) -> dict[tuple[str, int], Prediction]:
    """Return the predictions of all processes, by row and seed."""
    return {(prediction.id, prediction.seed): prediction for part in group.all_gather(own) for prediction in part}


if __name__ == "__main__":
    main()
