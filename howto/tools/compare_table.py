"""Print, in a terminal, the last run's base and fine-tuned model, or the comparison of two versions."""

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from howto.core.errors import UserError
from howto.core.paths import EVALUATION, REPORT, RESULTS
from howto.evaluation.baselines import LABELS
from howto.evaluation.general import cost_sentence
from howto.tools.compare import POWER, RESULTS_OF_A_RUN, Comparison, counted, sentence

COLUMNS = {
    "rougeL_run_sd": "SD over\nseeds",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "ended_by_eos": "ended by\nitself",
    "well_numbered": "numbered\n1 to n",
    "validation_loss": "validation\nloss",
}
SHARES = ("ended_by_eos", "well_numbered")
MAX_FILES = 8  # that are listed
PLAIN: dict[str, Any] = {"highlight": False, "markup": False}


def print_last_run(shown: int) -> None:
    """Print the scores of base and fine-tuned model, and `shown` typical rows with both answers.

    Raise UserError if metrics/evaluation.json or log/hasil.jsonl is missing or damaged.
    """
    try:
        evaluation = json.loads(EVALUATION.read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file. Make it with `dvc repro`.") from None
    except ValueError:
        raise UserError(f"{EVALUATION} or {RESULTS}: damaged. Make them again with `dvc repro -f evaluate`.") from None
    models = [("base model", evaluation["base"]), ("fine-tuned", evaluation["adapter"])]
    table = _score_table(f"Scores on {evaluation['rows']} held-out rows", SHARES, models, evaluation["delta"])
    for name, label in LABELS.items():
        table.add_row(f"baseline: {label}", f"{evaluation['baselines'][name]:.4f}", style="dim")
    console = new_console()
    console.print(table)
    console.print(f"The fine-tuned model is {_outcomes(evaluation['delta'], 'paired permutation test')}", **PLAIN)
    console.print(_note("rows", ["the fine-tuned model"]), **PLAIN)
    if cost := cost_sentence(evaluation):
        console.print(cost, **PLAIN)
    console.print(f"The full report is {REPORT}.", **PLAIN)
    if shown:
        title = "Typical answers to held-out intents (their scores are closest to the median):"
        console.print(f"\n{title}", style="dim", **PLAIN)
    for row in _typical(rows, shown):
        console.print(_scored_answers(row, {"base": "base model", "adapter": "fine-tuned"}))


def print_comparison(found: Comparison, shown: int) -> None:
    """Print scores, what differs, and `shown` rows with the largest gains and as many with the largest losses."""
    sides = (found.old, found.new)
    columns = [name for name in COLUMNS if found.over_seeds or name != "rougeL_run_sd"]
    models = "Fine-tuned models" if found.old.runs else "Base and fine-tuned model"
    runs = len(found.old.runs) + len(found.new.runs)
    of = "both versions" if runs == 2 and found.old.runs else counted(runs, "run")
    title = f"{models} on the {counted(found.rows, 'held-out row')} of {of}"
    console = new_console()
    console.print(_score_table(title, columns, [(side.name, side.metrics) for side in sides], found.delta))
    test = "over rows and training seeds" if found.over_seeds else "paired permutation test"
    console.print(sentence(f"{found.new.name} is {_outcomes(found.delta, test)}"), **PLAIN)
    for line in _remarks(found):
        console.print(line, **PLAIN)
    if found.params:
        table = Table(title="Params that differ", title_justify="left")
        for heading in ("", found.old.name, found.new.name):
            table.add_column(escape(heading), overflow="fold")
        for key, values in found.params.items():
            table.add_row(escape(key), *("" if value is None else escape(str(value)) for value in values))
        console.print("", table)
    by_gain = sorted(found.results, key=lambda row: row["old_rougeL"] - row["new_rougeL"])
    gains = [row for row in by_gain if row["new_rougeL"] > row["old_rougeL"]][:shown]
    regressions = [row for row in reversed(by_gain) if row["new_rougeL"] < row["old_rougeL"]][:shown]
    for title, some in (("Largest gains:", gains), ("Largest regressions:", regressions)):
        if some:
            console.print(f"\n{title}", style="dim", **PLAIN)
        for row in some:
            console.print(_scored_answers(row, {"old": found.old.name, "new": found.new.name}))
    console.print(f"\n{found.conclusion}", style="bold", **PLAIN)
    if found.detectable:
        difference = f"a true difference of {found.detectable:.3f} is detected with {POWER:.0%} power"
        console.print(f"On {found.sample} like these, {difference}.", style="dim", **PLAIN)
    single = [side.name for side in sides if len(side.runs) == 1]
    console.print(_note("rows and training seeds" if found.over_seeds else "rows", single), style="dim", **PLAIN)


def new_console() -> Console:
    """Return a console as wide as the terminal; 110 characters for a file."""
    return Console(width=None if Console().is_terminal else 110)


def _score_table(
    title: str, columns: Sequence[str], models: Sequence[tuple[str, Mapping[str, Any]]], delta: Mapping[str, Any]
) -> Table:
    """A line for each model, and one for their difference. All scores are as in metrics/evaluation.json."""
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold")
    for heading in ("ROUGE-L", "interval", *(COLUMNS[name] for name in columns)):
        table.add_column(heading, justify="right", no_wrap=heading == "interval")
    for label, scores in (*models, ("difference", delta)):
        sign = "+" if scores is delta else ""
        formats = {name: ".1%" if name in SHARES else f"{sign}.4f" for name in columns}
        table.add_row(
            escape(label),
            f"{scores['rougeL']:{sign}.4f}",
            f"\\[{scores['rougeL_low']:{sign}.4f}, {scores['rougeL_high']:{sign}.4f}]",
            *("" if scores.get(name) is None else format(scores[name], formats[name]) for name in columns),
            end_section=scores is models[-1][1] or scores is delta,
        )
    return table


def _outcomes(delta: Mapping[str, Any], test: str) -> str:
    return (
        f"better on {counted(delta['wins'], 'row')}, equal on {delta['ties']} and worse on {delta['losses']} "
        f"(p = {delta['p_value']:.2g}, {test})."
    )


def _remarks(found: Comparison) -> list[str]:
    """What there is to know beside the scores, a line each."""
    lines = [f"Warning: {warning}." for warning in found.warnings]
    for side in (found.old, found.new):
        if len(side.runs) > 1 or (side.runs and not found.old.runs):
            means = ", ".join(f"{run.name} {run.rougeL:.4f}" for run in side.runs)
            lines.append(f"{counted(len(side.runs), 'run')}: {means}.")
        for run in side.runs:
            if run.rows_left_out:
                left_out = f"{counted(run.rows_left_out, 'test row')} of {run.name}: left out"
                lines.append(f"{left_out}, because another version does not have the same texts.")
    if found.over_seeds:
        rows, seeds = (found.delta[f"rougeL_se_{source}"] for source in ("rows", "seeds"))
        lines.append(f"Standard error of the difference: {rows:.4f} from rows, {seeds:.4f} from training seeds.")
    if len(found.old.runs) + len(found.new.runs) > 1:
        rows = found.changed_base_answers
        changed = f"differ on {counted(rows, 'row')}" if rows else "are the same on all rows"
        lines.append(f"The base models' answers {changed}.")
    files = [path for path in found.hashes if not path.startswith(RESULTS_OF_A_RUN)]
    if files := sorted(files, key=lambda path: (path.startswith(("howto/", "stages/")), path)):  # code is last
        more = f" and {len(files) - MAX_FILES} more" if len(files) > MAX_FILES else ""
        lines.append(f"Files that differ: {', '.join(files[:MAX_FILES])}{more}.")
    return lines


def _note(covered: str, single: Sequence[str]) -> str:
    """What the intervals cover, and what they do not: the training seeds of models of a `single` run."""
    scores = "both scores" if len(single) == 2 else f"the score of {single[0]}" if single else ""
    return f"Intervals are over {covered}." + (f" Another training seed would change {scores} too." if scores else "")


def _typical(rows: list[dict[str, Any]], shown: int) -> list[dict[str, Any]]:
    """The rows whose fine-tuned scores are nearest to the median: no showpieces.

    They are of the rows that ask for steps and have no context, or of all rows if there are too few of those.
    """
    plain = [row for row in rows if row["procedural"] and not row["context"]]
    pool = plain if len(plain) >= shown else rows
    middle = median(row["adapter_rougeL"] for row in pool)
    return sorted(pool, key=lambda row: (abs(row["adapter_rougeL"] - middle), row["id"]))[:shown]


def _scored_answers(row: Mapping[str, Any], names: Mapping[str, str]) -> Table:
    answers = [(f"{name}: {row[f'{model}_rougeL']:.2f}", str(row[model])) for model, name in names.items()]
    return answers_table(answers, row["intent"])


def answers_table(answers: Sequence[tuple[str, str]], title: str = "") -> Table:
    """Return (heading, answer) pairs side by side."""
    # In a str, rich would interpret markup and names of emoji.
    table = Table(title=Text(title, "bold") if title else None, title_justify="left", expand=True)
    for heading, _ in answers:
        table.add_column(Text(heading), ratio=1, overflow="fold")
    table.add_row(*(Text(answer) for _, answer in answers))
    return table
