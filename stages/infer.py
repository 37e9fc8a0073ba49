"""Let the base model and the fine-tuned one write step-by-step instructions.

As a stage (`--stage base`, `--stage adapter`):
  reads:   data/prepared/test.jsonl, models/base/ (and models/adapter/)
  params:  infer, machine, profiles.<profile>.infer, profiles.<profile>.machine
  writes:  data/predictions/base.jsonl, or data/predictions/adapter.jsonl
Killed on the way, it goes on from models/checkpoints/ when it is run again with the same inputs. The rows are shared
among as many processes as there are GPUs, or --processes; how many they are changes no byte.

For a person:
  python -m stages.infer "How do I repot a fern?"
  python -m stages.infer "How do I repot a fern?" --compare
  python -m stages.infer                                              (a prompt; an empty line ends it)
  python -m stages.infer --input intents.txt --output answers.jsonl   (.txt, .jsonl or .csv; - for standard input)
"""

from __future__ import annotations

import argparse
import importlib
import shutil
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from howto.alone import alone
from howto.launch import hosts, is_in_a_group, launch, on_this_host
from howto.params.file import Params, read_params
from howto.params.infer import Infer, ProfileInfer
from howto.params.machine import Machine, ProfileMachine
from howto.rows import Prediction, Row, read_rows, write_rows
from howto.stop import stops_cleanly

if TYPE_CHECKING:
    import torch

    from howto.answering import Answering
    from howto.group import Group

BASE = Path("models/base")
ADAPTER = Path("models/adapter")
TEST = Path("data/prepared/test.jsonl")
PREDICTIONS = Path("data/predictions")
CHECKPOINTS = Path("models/checkpoints")
OTHERS = 2  # journals of runs with other inputs, which did not end, that are kept: such a run may yet go on
LONGEST = timedelta(days=7)  # that a process waits for another one to finish its share


@stops_cleanly
def main() -> None:
    """Run the stage, or answer a person."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("intent", nargs="?", help="what you want to do")
    parser.add_argument("--context", metavar="TEXT", default="", help="a text that the answer is to be drawn from")
    parser.add_argument("--input", metavar="FILE", help="a file of intents: .txt, .jsonl or .csv; - for standard input")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where the answers go, as JSONL (else: printed)")
    parser.add_argument("--model", choices=("base", "adapter"), default="adapter", help="who answers (%(default)s)")
    parser.add_argument("--adapter", metavar="FOLDER", type=Path, default=ADAPTER, help="another PEFT folder")
    parser.add_argument("--compare", action="store_true", help="let both models answer, side by side")
    parser.add_argument("--stage", choices=("base", "adapter"), help="answer every test row, as `dvc repro` does")
    parser.add_argument(
        "--processes", metavar="N", type=int, help="with --stage: so many share the rows (one for each GPU; else 1)"
    )
    arguments = parser.parse_args()
    if sum(value is not None for value in (arguments.intent, arguments.input, arguments.stage)) > 1:
        parser.error("give an intent, or --input FILE, or --stage")
    if arguments.output and arguments.input is None:
        parser.error("--output goes with --input")
    if arguments.context and arguments.intent is None:
        parser.error("--context goes with an intent")
    if arguments.compare and (arguments.input is not None or arguments.model != "adapter"):
        parser.error("--compare goes with an intent, or with the prompt, and without --model")
    if arguments.stage and (arguments.compare or arguments.adapter != ADAPTER or arguments.model != "adapter"):
        parser.error("--stage stands alone")
    if arguments.processes is not None and (arguments.processes < 1 or not arguments.stage):
        parser.error("--processes goes with --stage, and is 1 or more")
    params = read_params()
    if arguments.stage:
        with alone(PREDICTIONS / f"{arguments.stage}.jsonl"):
            predict(params, arguments.stage, arguments.processes)
    else:
        # Imported by name: how a person is answered changes nothing that the stage makes.
        importlib.import_module("howto.asking").ask(params, arguments, BASE)


def predict(params: Params, model: str, processes: int | None = None) -> None:
    """Write the model's answers to every test row, in the order of the rows, and of the seeds within a row.

    Where a prompt is longer than the model can read, or than params allow, its context is shortened; an intent that
    is too long by itself gets an empty answer, which scores 0. `processes`, over all hosts, share the rows; None: one
    for each GPU.
    """
    rows = read_rows(TEST, Row)
    shared, profile = params.section(Infer), params.section(ProfileInfer)
    decoding = profile.decoding(shared)

    from howto.torch_setup import set_up_torch, versions

    machine = params.section(ProfileMachine)
    device = set_up_torch(params.section(Machine), machine)
    if not is_in_a_group():
        here = on_this_host(processes, "--processes") if processes else _gpus(device)
        if here > 1 or hosts() > 1:
            number = ["--processes", str(processes)] if processes else []
            launch("stages.infer", ["--stage", model, *number], here)
            return

    from howto.answering import Answering
    from howto.group import joined
    from howto.inputs import Inputs

    adapter = ADAPTER if model == "adapter" else None
    with joined(processes, device, "--processes", patience=LONGEST) as group:
        inputs = Inputs([TEST, BASE, *filter(None, [adapter])], params, [Infer, ProfileInfer, Machine, ProfileMachine])
        group.agree(inputs.parts(model=model, **versions(group.device)))
        folder = CHECKPOINTS / f"infer-{model}-{inputs.key(model=model, **versions(group.device))}"
        answering = Answering(
            BASE, adapter, decoding, batch_size=profile.batch_size, precision=machine.precision, device=group.device
        )
        predictions = answer(answering, rows, decoding.seeds, folder, bar=f"infer {model}", group=group)
        if group.rank == 0:
            inputs.check()
            write_rows(PREDICTIONS / f"{model}.jsonl", predictions)
        group.of_first(None)  # until they are written, what another host has may be needed again
        if group.local_rank == 0:
            _remove(folder, model)
    if group.rank == 0:
        ended = sum(prediction.stop == "eos" for prediction in predictions)
        print(
            f"infer: {len(predictions)} answers by {model}, {ended} ended by the model -> {PREDICTIONS / model}.jsonl"
        )


def answer(
    answering: Answering, rows: list[Row], seeds: list[int], folder: Path, *, bar: str, group: Group
) -> list[Prediction]:
    """The predictions for all rows and seeds; those that are in a journal in `folder` are not made again.

    Each process writes a journal of its own; taken up are those of all, however many processes wrote them.
    """
    from howto.journal import journal, records

    inputs = answering.fit(rows)
    references = answering.references(rows, inputs, group)
    paths = sorted(folder.glob("answers*.jsonl")) if group.local_rank == 0 else []
    ready = group.of_all([prediction for path in paths for prediction in records(path, Prediction)])
    found = {(prediction.id, prediction.seed): prediction for part in ready for prediction in part}
    missing = [(number, seed) for number, row in enumerate(rows) for seed in seeds if (row.id, seed) not in found]
    own = []
    number_of_journal = f"-{group.rank}" if group.rank else ""
    shown = bar if group.size == 1 else f"{bar}, process 1 of {group.size}" if group.rank == 0 else ""
    with journal(folder / f"answers{number_of_journal}.jsonl", Prediction) as answers:
        for number, seed, given in answering.answers(rows, inputs, group.share(missing), bar=shown):
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
    found |= {(prediction.id, prediction.seed): prediction for part in group.of_all(own) for prediction in part}
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
