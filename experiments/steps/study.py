"""Show what ROUGE-L and the measures of the steps make of steps that were changed on purpose.

python -m experiments.steps.study

Each edit changes the steps of held-out rows, and is scored as an answer to them: edits of the references, and of the
same steps in other words. `paraphrases.jsonl` has all steps of 12 rows in other words. Steps are matched by words, and
by embeddings (`pip install wordllama`). The study also counts, by threshold, the steps that match a step of an unlike
row, and those that match their paraphrase. It takes two minutes.

reads:   data/prepared/{train,validation,test}.jsonl, paraphrases.jsonl
params:  evaluate, but for embedding_model
writes:  results.json; prints the tables of README.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tqdm import tqdm

from howto.core.atomic import write_json
from howto.core.errors import reports_errors
from howto.core.paths import TEST, TRAIN, VALIDATION
from howto.core.schema import Prediction, Row, read_rows
from howto.evaluation.config import Evaluate
from howto.evaluation.metrics import measure_difference
from howto.evaluation.rouge import Rouge
from howto.evaluation.scoring import score
from howto.evaluation.steps import MEASURES, StepMatcher, match_by_meaning, match_by_words, split_steps
from howto.params import read_params

RESULTS = Path(__file__).with_name("results.json")
PARAPHRASES = Path(__file__).with_name("paraphrases.jsonl")
MODELS = {"words": None, "embedding": "package:wordllama"}
THRESHOLDS = (0.2, 0.25, 0.3, 0.35, 0.4, 0.5)
UNLIKE = 5  # rows that each row is compared with
SCORES = ("rougeL", *(f"step_{name}" for name in MEASURES))


@reports_errors
def main() -> None:
    """Run the study, and print and write what it finds."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    config = read_params().section(Evaluate)
    rows = read_rows(TEST, Row)
    every_row = [*read_rows(TRAIN, Row), *read_rows(VALIDATION, Row), *rows]
    paraphrases = read_paraphrases(PARAPHRASES)
    steps_of = {row.id: [step.text for step in split_steps(row.output)] for row in rows}
    found: dict[str, Any] = {
        "edits": {
            of: {
                name: scored(rows, edits, config.model_copy(update={"embedding_model": model}))
                for name, model in MODELS.items()
            }
            for of, edits in (
                ("references", edited(steps_of, steps_of)),
                ("other words", edited(paraphrases, steps_of)),
            )
        },
        "thresholds": {name: matched_shares(every_row, paraphrases, config, model) for name, model in MODELS.items()},
    }
    write_json(RESULTS, found)
    for of, by_model in found["edits"].items():
        for name, edits in by_model.items():
            print(f"\nEdits of {of}, by {name}\n")
            for edit, scores in edits.items():
                print(f"| {edit} | {' | '.join(cell(scores, key) for key in SCORES)} |")
    for name, by_threshold in found["thresholds"].items():
        print(f"\nThresholds, by {name}\n")
        for threshold, shares in by_threshold.items():
            print(f"| {threshold} | {' | '.join(f'{share:.1%}' for share in shares.values())} |")


def cell(scores: dict[str, float], key: str) -> str:
    """Return a mean and, in brackets, the interval of its change, for the tables."""
    if key not in scores:
        return ""
    low, high = (scores.get(f"{key}_change_{end}", 0.0) for end in ("low", "high"))
    change = f"{low:+.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:+.2f} to {high:+.2f}"
    return (f"{scores[key]:.3f} ({change})" if low or high else f"{scores[key]:.3f}").replace("-", "\u2212")


def read_paraphrases(path: Path) -> dict[str, list[str]]:
    """Return the steps in other words, by the id of their row."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["id"]: line["steps"] for line in lines}


def numbered(steps: Sequence[str]) -> str:
    """Return the steps as a numbered list."""
    return "\n".join(f"{number}. {step}" for number, step in enumerate(steps, start=1))


def edited(steps_of: dict[str, list[str]], references: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """Return each edit's texts by the rows' ids. Chance is seeded by edit and row."""

    def of_each(name: str, edit: Callable[[str, list[str], Random], list[str]]) -> dict[str, str]:
        return {id: numbered(edit(id, [*steps], Random(f"{name} {id}"))) for id, steps in steps_of.items()}

    def swapped(_: str, steps: list[str], chance: Random) -> list[str]:
        at = chance.randrange(len(steps) - 1)
        return [*steps[:at], steps[at + 1], steps[at], *steps[at + 2 :]]

    def shortened(_: str, steps: list[str], chance: Random) -> list[str]:
        del steps[chance.randrange(len(steps))]
        return steps

    def another(id: str, chance: Random) -> list[str]:
        return references[chance.choice([other for other in references if other != id])]

    def lengthened(id: str, steps: list[str], chance: Random) -> list[str]:
        steps.insert(chance.randrange(len(steps) + 1), chance.choice(another(id, chance)))
        return steps

    return {
        "unchanged": of_each("unchanged", lambda _, steps, __: steps),
        "two neighbours swapped": of_each("swapped", swapped),
        "shuffled": of_each("shuffled", lambda _, steps, chance: chance.sample(steps, len(steps))),
        "reversed": of_each("reversed", lambda _, steps, __: steps[::-1]),
        "one step missing": of_each("missing", shortened),
        "one step too much": of_each("added", lengthened),
        "another row's steps": of_each("another", lambda id, _, chance: another(id, chance)),
    }


def scored(rows: Sequence[Row], edits: dict[str, dict[str, str]], config: Evaluate) -> dict[str, dict[str, float]]:
    """Return each edit's mean scores, and their change against the unedited steps, with its interval."""
    found = {}
    for name, texts in edits.items():
        own = [row for row in rows if row.id in texts]
        answers = {
            kind: [[_prediction(row.id, edits[of][row.id])] for row in own]
            for kind, of in (("unchanged", "unchanged"), ("edited", name))
        }
        scores = score(
            own, answers, [{}] * len(own), use_stemmer=config.use_stemmer, tokenizer=config.tokenizer, steps=config
        )
        edit = scores.models["edited"].row_means, *scores.steps["edited"].values.values()
        means = {
            key: round(float(np.nanmean(values)), 6)
            for key, values in zip(SCORES, edit, strict=True)
            if not np.isnan(values).all()
        }
        delta = measure_difference(scores, "unchanged", "edited", config)
        changes = {
            f"{key}_change{end}": delta[f"{key}{end}"]
            for key in SCORES
            for end in ("", "_low", "_high")
            if f"{key}{end}" in delta and name != "unchanged"
        }
        found[name] = {"rows": len(own), **means, **changes}
    return found


def _prediction(id: str, text: str) -> Prediction:
    counts = {"prompt_tokens": 1, "new_tokens": 1, "reference_tokens": 1}
    return Prediction(id=id, seed=0, text=text, stop="eos", reference_log_probability=None, **counts)


def matched_shares(
    rows: Sequence[Row], paraphrases: dict[str, list[str]], config: Evaluate, model: str | None
) -> dict[str, dict[str, float]]:
    """Return by threshold which share of the references' steps matches a step that says something else, or the same.

    The other is a step of a random row, of a random row with the same category, or of the paraphrase; `right` counts
    the steps that match their own paraphrase.
    """
    rouge = Rouge(use_stemmer=config.use_stemmer, tokenizer=config.tokenizer)
    reworded = {id: numbered(steps) for id, steps in paraphrases.items()}
    texts = [*(row.output for row in rows), *reworded.values()]
    chance = Random("unlike rows")
    unlike = [(row, other.output) for row in rows for other in chance.sample(rows, UNLIKE) if other is not row]
    alike = {row.category: [other for other in rows if other.category == row.category] for row in rows}
    same_category = [
        (row, other.output) for row in rows for other in chance.sample(alike[row.category], UNLIKE) if other is not row
    ]
    own = [(row, reworded[row.id]) for row in rows if row.id in reworded]
    found = {}
    for threshold in tqdm(THRESHOLDS, desc="thresholds", disable=None):
        matcher = match_by_meaning(model, texts, threshold) if model else match_by_words(rouge, threshold)
        found[str(threshold)] = {
            "another_row": _share(matcher, unlike),
            "same_category": _share(matcher, same_category),
            "paraphrase": _share(matcher, own),
            "right": _share(matcher, own, right=True),
        }
    return found


def _share(matcher: StepMatcher[Any], pairs: Sequence[tuple[Row, str]], *, right: bool = False) -> float:
    """The share of all steps of the pairs' references that are matched, or with `right` to the step of their number."""
    matched = total = 0
    for row, text in pairs:
        scores = matcher.score_row(row, {"": [text]})
        assert scores is not None  # every reference is a numbered list
        steps = [step for step in enumerate((step for _, step in scores[""][0].matches), start=1) if step[1]]
        matched += sum(number == step for number, step in steps) if right else len(steps)
        total += len(split_steps(row.output))
    return round(matched / total, 6)


if __name__ == "__main__":
    main()
