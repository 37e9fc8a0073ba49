"""An estimate as a table, on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from howto.estimate import Estimate
    from howto.params.file import Params


def show(told: Estimate, params: Params, *, is_gpu: bool) -> None:
    """Print it, on one screen."""
    from rich.console import Console
    from rich.table import Table

    known, where = told.known, f"{told.gpus} x {told.speed.name}" if is_gpu else told.speed.name
    console = Console(highlight=False, soft_wrap=False)
    console.print(f"profile [bold]{params.profile}[/bold] on {where}{', not measured' if is_gpu else ''}")
    console.print(
        f"{known.shape.parameters():,} parameters, {told.trainable:,} of them trained; {known.raw_rows:,} rows: "
        f"{known.train.count:,} to train, {known.validation.count:,} to validate, {known.test.count:,} to test, "
        f"{known.train.tokens:.0f} tokens each"
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("stage", "time", "memory", *(["memory of a GPU"] if is_gpu else []), "stays on disk", "while it runs"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for name, cost in {**told.stages, "total": told.total()}.items():
        gpu = [size_of(cost.on_gpu) if cost.on_gpu else ""] if is_gpu else []
        table.add_row(
            name,
            _time(cost.seconds),
            size_of(cost.memory),
            *gpu,
            size_of(cost.disk),
            size_of(cost.passing) if cost.passing else "",
            style="bold" if name == "total" else None,
        )
    console.print(table)
    console.print(f"disk of the project: {size_of(told.disk())}, DVC's cache included (a second copy, unless it links)")
    for note in told.notes:
        console.print(f"- {note}", markup=False)


def _time(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def size_of(count: float) -> str:
    """A number of bytes, for people."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}" if count < 100 * size else f"{count / size:,.0f} {unit}"
    return f"{count / 2**10:,.0f} KiB"
