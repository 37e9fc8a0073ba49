"""The comparison of two versions, as a person reads it in a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from howto.tools.compare import Comparison, Pair
from howto.tools.revision import capital

MADE_OF = {
    "models/base": "base model",
    "data/prepared/train.jsonl": "training rows",
    "data/prepared/validation.jsonl": "validation rows",
    "models/adapter": "adapter",
}
MOST_PARAMS, MOST_FILES = 15, 6  # that are listed
NARROW = ("ended by\nitself", "numbered\n1 to n", "validation\nloss")
SEEDS = "Intervals are over rows: another seed of training would move both numbers too."
PLAIN: dict[str, Any] = {"highlight": False, "markup": False}


def print_comparison(found: Comparison, said: list[str], shown: int) -> None:
    """Print the scores, what differs, `shown` rows of the greatest gains and of losses, and what is `said` of it."""
    console = Console(width=None if Console().is_terminal else 110)
    console.print(_scores(found))
    console.print(
        f"{capital(found.of.name)} is better in {found.wins} rows, equal in {found.ties} and worse in {found.losses}; "
        f"p = {found.p_value:.2g} (paired permutations).",
        **PLAIN,
    )
    for line in _remarks(found):
        console.print(line, **PLAIN)
    if found.params or not found.files.keys().isdisjoint(MADE_OF):
        console.print()
        console.print(_differing(found))
    for title, pairs in _extremes(found, shown):
        console.print(f"\n[dim]{title}[/dim]")
        for pair in pairs:
            console.print(_side_by_side(found, pair))
    console.print()
    console.print(said[0], style="bold", **PLAIN)
    for line in (*filter(None, said[1:]), SEEDS):
        console.print(line, style="dim", **PLAIN)


def _scores(found: Comparison) -> Table:
    table = Table(title=f"The fine-tuned models on the {found.rows} held-out rows of both", title_justify="left")
    table.add_column("", overflow="fold")
    for heading in ("ROUGE-L", "interval", "ROUGE-1", "ROUGE-2", *NARROW):
        table.add_column(heading, justify="right", no_wrap=heading == "interval")
    for side in (found.against, found.of):
        table.add_row(
            escape(side.name),
            f"{side.rouge['rougeL']:.4f}",
            f"\\[{side.interval[0]:.4f}, {side.interval[1]:.4f}]",
            f"{side.rouge['rouge1']:.4f}",
            f"{side.rouge['rouge2']:.4f}",
            f"{side.ended_by_eos:.1%}",
            "" if side.well_numbered is None else f"{side.well_numbered:.1%}",
            "" if side.validation_loss is None else f"{side.validation_loss:.4f}",
            end_section=side is found.of,
        )
    table.add_row(
        "difference",
        f"{found.rouge['rougeL']:+.4f}",
        f"\\[{found.interval[0]:+.4f}, {found.interval[1]:+.4f}]",
        f"{found.rouge['rouge1']:+.4f}",
        f"{found.rouge['rouge2']:+.4f}",
        "",
        "",
        _loss_difference(found),
    )
    return table


def _loss_difference(found: Comparison) -> str:
    """Nothing where the losses are of other rows, or of a base model that may have other tokens."""
    before, after = found.against.validation_loss, found.of.validation_loss
    alike = found.files.keys().isdisjoint(("models/base", "data/prepared/validation.jsonl"))
    return f"{after - before:+.4f}" if alike and before is not None and after is not None else ""


def _remarks(found: Comparison) -> list[str]:
    """What there is to know beside the scores, a line each."""
    said = []
    for side, other in ((found.against, found.of), (found.of, found.against)):
        if side.rows_alone:
            said.append(
                f"{side.rows_alone} test rows of {side.name} are left out: {other.name} does not have them, or asks or "
                "expects something else there."
            )
    if found.against.seeds != found.of.seeds:
        said.append(
            f"{capital(found.against.name)} has {found.against.seeds} answers a row, {found.of.name} has "
            f"{found.of.seeds}; a row's score is their mean."
        )
    if any(key.startswith("evaluate.") for key in found.params):
        said.append("Both are scored with the `evaluate` params of this folder's params.yaml.")
    said.append(
        f"The base models' answers differ in {found.other_base_answers} rows."
        if found.other_base_answers
        else "The base models' answers are the same in all rows."
    )
    code = [path for path in found.files if path.startswith(("howto/", "stages/"))]
    if code:
        more = f" and {len(code) - MOST_FILES} more" if len(code) > MOST_FILES else ""
        said.append(f"Made with other code: {', '.join(code[:MOST_FILES])}{more}.")
    return said


def _differing(found: Comparison) -> Table:
    """Params, and hashes of what the answers are made of."""
    table = Table(title="What differs", title_justify="left")
    table.add_column("")
    for side in (found.against, found.of):
        table.add_column(escape(side.name), overflow="fold")
    for key, values in list(found.params.items())[:MOST_PARAMS]:
        table.add_row(escape(key), *("" if value is None else escape(str(value)) for value in values))
    if (more := len(found.params) - MOST_PARAMS) > 0:
        table.add_row(f"and {more} more params", "", "")
    for path, name in MADE_OF.items():
        if path in found.files:
            table.add_row(name, *((digest or "")[:7] for digest in found.files[path]), style="dim")
    return table


def _extremes(found: Comparison, shown: int) -> list[tuple[str, list[Pair]]]:
    """(title, rows) of the greatest gains, and of the greatest losses."""
    gains = sorted((pair for pair in found.pairs if pair.gain > 0), key=lambda pair: (-pair.gain, pair.id))
    losses = sorted((pair for pair in found.pairs if pair.gain < 0), key=lambda pair: (pair.gain, pair.id))
    both = (("The greatest gains:", gains), ("The greatest losses:", losses))
    return [(title, pairs[:shown]) for title, pairs in both if shown > 0 and pairs]


def _side_by_side(found: Comparison, pair: Pair) -> Table:
    table = Table(
        title=escape(f"{pair.intent} ({pair.gain:+.2f})"), title_justify="left", title_style="bold", expand=True
    )
    for side, score in zip((found.against, found.of), pair.rouge_l, strict=True):
        table.add_column(escape(f"{side.name} ({score:.2f})"), ratio=1, overflow="fold")
    table.add_row(*(escape(answer) for answer in pair.answers))
    return table
