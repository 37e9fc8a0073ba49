"""The comparison of base and fine-tuned model, as a person reads it in a terminal."""

from __future__ import annotations

import json
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from howto.core.errors import UserError
from howto.core.paths import EVALUATION, REPORT, RESULTS

FLOORS = {
    "echo_intent": "echo the intent",
    "echo_context": "echo context or intent",
    "random_answer": "random training answer",
    "nearest_answer": "nearest training answer",
}


def print_comparison(answers: int) -> None:
    """Print the scores of the last run, and so many typical answers of both models side by side.

    Raises:
        UserError: one of the two is missing or damaged.
    """
    try:
        measured = json.loads(EVALUATION.read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not there; make it with `dvc repro`") from None
    except ValueError:
        raise UserError(f"{EVALUATION} or {RESULTS}: damaged; make both again with `dvc repro -f evaluate`") from None
    console = Console(width=None if Console().is_terminal else 110)
    console.print(_scores(measured))
    delta = measured["delta"]
    console.print(
        f"The fine-tuned model is better in {delta['wins']} rows and worse in {delta['losses']}; "
        f"p = {delta['p_value']:.4g} (paired permutations). Brackets hold bootstrap intervals over rows.\n"
        f"The whole of it: {REPORT}\n",
        highlight=False,
    )
    console.print(
        "[dim]Answers to intents that are not in the training rows, of the score that is usual here (the median):[/dim]"
    )
    for row in _typical(rows, answers):
        console.print(_side_by_side(row))


def _scores(measured: dict[str, Any]) -> Table:
    table = Table(title=f"ROUGE-L on {measured['rows']} held-out rows", title_justify="left")
    table.add_column("")
    for heading in ("ROUGE-L", "interval", "ended by itself", "numbered 1 to n"):
        table.add_column(heading, justify="right")
    for name, label in (("base", "base model"), ("adapter", "fine-tuned"), ("delta", "difference")):
        part = measured[name]
        table.add_row(
            label,
            f"{part['rougeL']:+.4f}" if name == "delta" else f"{part['rougeL']:.4f}",
            f"\\[{part['rougeL_low']:.4f}, {part['rougeL_high']:.4f}]",
            _percent(part.get("ended_by_eos")),
            _percent(part.get("well_numbered")),
            end_section=name in ("adapter", "delta"),
        )
    for name, label in FLOORS.items():
        table.add_row(f"floor: {label}", f"{measured['floors'][name]:.4f}", style="dim")
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _typical(rows: list[dict[str, Any]], wanted: int) -> list[dict[str, Any]]:
    """Rows on which the fine-tuned model does as well as it usually does: no showpieces.

    Of the rows that ask for steps and have no context (of all rows, if there are too few of those) the
    `wanted` whose scores lie nearest the median.
    """
    plain = [row for row in rows if row["procedural"] and not row["context"]]
    pool = plain if len(plain) >= wanted else rows
    middle = median(row["adapter_rougeL"] for row in pool)
    return sorted(pool, key=lambda row: (abs(row["adapter_rougeL"] - middle), row["id"]))[:wanted]


def _side_by_side(row: dict[str, Any]) -> Table:
    table = Table(title=row["intent"], title_justify="left", title_style="bold", expand=True)
    for name, label in (("base", "base model"), ("adapter", "fine-tuned")):
        table.add_column(f"{label} ({row[f'{name}_rougeL']:.2f})", ratio=1, overflow="fold")
    table.add_row(row["base"], row["adapter"])
    return table
