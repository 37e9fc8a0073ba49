"""Whether a committed run was made again, byte for byte; and if not, where it parted first."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from howto.tools.reproduction import Found, Output, Stage

PLAIN: dict[str, Any] = {"highlight": False, "markup": False}


def print_verdict(found: Found) -> int:
    """Print all that was found; 0 if the committed run was made again, else 1."""
    console = Console(width=None if Console().is_terminal else 110)
    console.print()
    console.print(_outputs(found))
    for line in where(found):
        console.print(line, **PLAIN)
    failed, said = verdict(found)
    console.print(
        ("FAILED: " if failed else "REPRODUCED: ") + said, style="bold red" if failed else "bold green", **PLAIN
    )
    return int(failed)


def where(found: Found) -> list[str]:
    """Where the run parts from the committed one, a line for each thing to know, causes before what follows."""
    said = []
    for path in found.unlike_lock:
        said.append(
            f"{path}: the committed file is not the one that the committed dvc.lock knows; commit both of one run."
        )
    for stage in found.stages:
        if stage.otherwise:
            said.append(
                f"{stage.name} is not run as the committed dvc.lock says ({', '.join(stage.otherwise)} changed): say "
                "`dvc repro`, and commit dvc.lock with the change."
            )
    differing = [stage for stage in found.stages if not stage.same and _was_run(stage)]
    causes = [stage for stage in differing if not stage.inputs]
    for stage in causes:
        first = "is the first stage that differs" if stage is differing[0] else "differs too, by itself"
        why = (
            "with other code or params than were committed"
            if stage.otherwise
            else "with the same inputs, code and params"
        )
        said.append(f"{stage.name} {first}: {why} it made other bytes of {_paths(stage)}.")
    if downstream := [stage.name for stage in differing if stage.inputs]:
        said.append(f"Downstream, as their inputs differ: {', '.join(downstream)}.")
    if not_made := [output.path for output in found.outputs if output.made is None]:
        said.append(f"Not made: {', '.join(not_made)}.")
    if found.left:
        said.append(f"The run left changes in git beside its outputs: {', '.join(found.left)}.")
    return said


def verdict(found: Found) -> tuple[bool, str]:
    """(whether it failed, why) in one sentence."""
    if found.status:
        made = sum(output.made is not None for output in found.outputs)
        count = f"{made} of {len(found.outputs)} outputs were made"
        return True, f"{found.command} ended with status {found.status}; {count}."
    if found.unlike_lock or found.left or any(stage.otherwise for stage in found.stages):
        return True, "what is committed does not belong together, see above."
    if all(output.same for output in found.outputs):
        count = f"all {len(found.outputs)} outputs of {len(found.stages)} stages"
        return False, f"{count} are the committed ones, byte for byte."
    return True, "with the same code and params every byte has to be the same."


def _was_run(stage: Stage) -> bool:
    return any(output.made is not None for output in stage.outputs)


def _paths(stage: Stage) -> str:
    return ", ".join(output.path for output in stage.outputs if not output.same)


def _outputs(found: Found) -> Table:
    table = Table(title="The committed run, and this one", title_justify="left")
    for heading in ("stage", "output", "committed", "now"):
        table.add_column(heading, overflow="fold")
    for stage in found.stages:
        for output in stage.outputs:
            name = stage.name if output is stage.outputs[0] else ""
            table.add_row(
                escape(name),
                escape(output.path),
                _short(output.committed),
                _now(output),
                end_section=output is stage.outputs[-1],
            )
    return table


def _now(output: Output) -> str:
    if output.same:
        return "[green]same[/green]"
    return f"[red]{_short(output.made)}[/red]" if output.made else "[red]not made[/red]"


def _short(digest: str | None) -> str:
    return digest[:8] if digest else "not there"
