"""Measure what the fine-tuning may have cost: read general text and answer plain questions with one of the models.

reads:   the text and the questions that `general` names, models/base/ (and models/adapter/)
params:  general, infer, machine, profiles.<profile>.infer, profiles.<profile>.machine
writes:  data/predictions/general_base.json, or data/predictions/general_adapter.json

Answers are decoded greedily, otherwise with the profile's decoding params, in one process.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from howto.core.config import Params
from howto.core.errors import UserError, reports_errors
from howto.core.output_lock import output_lock
from howto.core.paths import ADAPTER, BASE, PREDICTIONS
from howto.core.schema import Row
from howto.general.config import General
from howto.general.inputs import Question, read_questions, read_texts
from howto.general.results import ChatAnswer, GeneralResults, ScoredPassage, general_path, write_results
from howto.inference.config import Infer, ProfileInfer
from howto.modeling.config import Machine, ProfileMachine
from howto.params import read_params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from howto.inference.generator import Generator
    from howto.modeling.collate import Example
    from howto.modeling.distributed.process_group import ProcessGroup

CODE = (
    "howto/__init__.py",
    "howto/core",
    "howto/general",
    "howto/inference",
    "howto/modeling",
    "stages/__init__.py",
    "stages/general.py",
)


@reports_errors
def main() -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("base", "adapter"), required=True, help="the model that is measured")
    model = parser.parse_args().stage
    params = read_params()
    with output_lock(general_path(PREDICTIONS, model)):
        measure(params, model)


def measure(params: Params, model: str) -> None:
    """Write what `model` ("base" or "adapter") makes of the text and the questions. Without either, load no model."""
    from howto.modeling.fingerprint import Fingerprint

    config = params.section(General)
    text, chat = (Path(path) if path else None for path in (config.text, config.chat))
    adapter = ADAPTER if model == "adapter" else None
    inputs = [path for path in (text, chat, BASE, adapter) if path]
    fingerprint = Fingerprint(inputs, params, [General, Infer, ProfileInfer, Machine, ProfileMachine], CODE)
    texts = list(read_texts(text)) if text else []
    questions = read_questions(chat) if chat else []
    results = GeneralResults()
    if texts or questions:
        generator, group = load(params, config, adapter)
        passages = score(generator, texts, config.max_tokens, group)
        results = GeneralResults(passages=passages, answers=answer(generator, questions))
    fingerprint.check()
    output = general_path(PREDICTIONS, model)
    write_results(output, results)
    print(f"general: {len(results.passages)} passages and {len(results.answers)} answers by {model} -> {output}")


def load(params: Params, config: General, adapter: Path | None) -> tuple[Generator, ProcessGroup]:
    """Return the model, which decodes greedily and else as in `infer`, and this process by itself."""
    from howto.modeling.torch_setup import set_up_torch

    machine, profile = params.section(ProfileMachine), params.section(ProfileInfer)
    device = set_up_torch(params.section(Machine), machine)

    from howto.inference.generator import Generator
    from howto.modeling.distributed.process_group import ProcessGroup

    greedy = {"max_new_tokens": config.max_new_tokens, "temperature": 0.0, "seeds": [0]}
    decoding = profile.decoding(params.section(Infer)).model_copy(update=greedy)
    size, precision = profile.batch_size, machine.precision
    generator = Generator.load(BASE, adapter, decoding, batch_size=size, precision=precision, device=device)
    return generator, ProcessGroup(device)


def score(
    generator: Generator, texts: list[tuple[str, str]], max_tokens: int, group: ProcessGroup
) -> list[ScoredPassage]:
    """Return the mean log-probability of each passage of at most `max_tokens` tokens.

    Raise UserError if no text has two tokens, or a passage does not fit into the model's context window.
    """
    examples = [one for name, text in texts for one in split(generator.chat.tokenizer, name, text, max_tokens)]
    if texts and not examples:
        raise UserError("params.yaml: general.text: expected texts of two tokens or more. Name others, or set null.")
    means = generator.reference_log_probabilities(examples, group)
    if missing := next((one for one in examples if one.id not in means), None):
        raise UserError(
            f"params.yaml: general.max_tokens: the {len(missing)} tokens of {missing.id} exceed the context window of "
            f"{BASE}. Lower it."
        )
    return [ScoredPassage(name=one.id, tokens=len(one.completion), log_probability=means[one.id]) for one in examples]


def split(tokenizer: PreTrainedTokenizerBase, name: str, text: str, max_tokens: int) -> list[Example]:
    """Return a text as passages of at most `max_tokens` tokens, without the chat template.

    The first token of each is context. It is the last of the passage before, so that every token of the text but the
    first is predicted once. Text such as `</s>` is tokenised as characters.
    """
    from howto.modeling.collate import Example

    ids = list(tokenizer(text, split_special_tokens=True, verbose=False).input_ids)
    starts = range(0, len(ids) - 1, max_tokens - 1)
    parts = [ids[start : start + max_tokens] for start in starts]
    names = [name] if len(parts) == 1 else [f"{name} ({number} of {len(parts)})" for number in range(1, len(parts) + 1)]
    return [Example(one, part[:1], part[1:]) for one, part in zip(names, parts, strict=True)]


def answer(generator: Generator, questions: list[Question]) -> list[ChatAnswer]:
    """Return the answers, in the order of the questions. A question has no system message of ours."""
    from howto.inference.decoder import Request

    rows = [
        Row(id=str(number), category="", instruction="", input=question.question, context="", output="")
        for number, question in enumerate(questions)
    ]
    requests = [Request(generator.encode(row)) for row in rows]
    found = {one.request.row.id: one for one in generator.generate(requests, progress="general")}
    return [
        ChatAnswer(question=question, text=found[row.id].text, stop=found[row.id].stop)
        for row, question in zip(rows, questions, strict=True)
    ]


if __name__ == "__main__":
    main()
