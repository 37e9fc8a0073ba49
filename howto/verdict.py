"""Whether a committed run was made again, and if not, where it parted first and what may explain it.

On a CPU of the recorded kind every output must be the same, byte for byte. Another CPU may round sums otherwise, and
then training ends with slightly other weights. There what is made without sums of floating-point numbers must still be
the same, and ROUGE-L must be within TOLERANCE of the committed one.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from howto.machine_facts import KIND
from howto.reproduction import Found, Output, Stage

TOLERANCE = 0.03
EXACT = ("fetch_model", "fetch_data", "prepare")  # stages that write no sums of floating-point numbers
RECORD = "`python -m howto.verify --record`, on the machine that made the committed run"
PLAIN: dict[str, Any] = {"highlight": False, "markup": False}


def print_verdict(found: Found) -> int:
    """Print all that was found; 0 if the committed run was made again, else 1."""
    console = Console(width=None if Console().is_terminal else 110)
    console.print()
    console.print(_outputs(found))
    for line in where(found):
        console.print(line, **PLAIN)
    if not all(output.same for output in found.outputs):
        for line in _of_the_record(found):
            console.print(line, **PLAIN)
        if other := differing_facts(found):
            console.print(_facts(other))
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
    if not found.recorded or not found.facts or not found.recorded_for_this_run:
        return True, "outputs differ, and it is not known whether this kind of machine made the committed ones."
    if other := [fact for fact in KIND if found.recorded.get(fact) != found.facts.get(fact)]:
        return _on_another_kind(found, f"another kind of machine ({', '.join(other)})")
    return True, "this is the kind of machine that the committed run was made on, where every byte has to be the same."


def _on_another_kind(found: Found, kind: str) -> tuple[bool, str]:
    if wrong := [stage.name for stage in found.stages if stage.name in EXACT and not stage.same]:
        return True, f"{kind}, but no rounding of a CPU is behind {', '.join(wrong)}."
    scores = ", ".join(f"{model} {one:.4f} committed, {now:.4f} now" for model, (one, now) in found.rouge_l.items())
    if not found.rouge_l or any(abs(now - one) > TOLERANCE for one, now in found.rouge_l.values()):
        return True, f"{kind}, but ROUGE-L is not within {TOLERANCE} of the committed one: {scores or 'there is none'}."
    return False, (
        f"as far as {kind} can: what is made without floating-point arithmetic is the same, and ROUGE-L is within "
        f"{TOLERANCE} of the committed one ({scores})."
    )


def differing_facts(found: Found) -> dict[str, tuple[str, str]]:
    """(of the committed run's machine, of this one) for each fact that differs; of instructions those of one alone."""
    if not found.recorded or not found.facts:
        return {}
    names = [*found.facts, *(name for name in found.recorded if name not in found.facts)]
    pairs = {name: (found.recorded.get(name, ""), found.facts.get(name, "")) for name in names}
    other = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if "instructions" in other:
        one, two = (set(flags.split()) for flags in other["instructions"])
        other["instructions"] = (" ".join(sorted(one - two)), " ".join(sorted(two - one)))
    return other


def _of_the_record(found: Found) -> list[str]:
    if not found.recorded:
        return [f"No machine is recorded for the committed run; say {RECORD}, and commit metrics/machine.json."]
    said = []
    if not found.recorded_for_this_run:
        said.append(f"metrics/machine.json was recorded for another run than the committed one; say {RECORD}.")
    if not found.facts:
        said.append("What this machine has could not be asked: the clone has no environment.")
    elif differing_facts(found):
        said.append("What this machine has otherwise than that of the committed run, and may explain it:")
    else:
        said.append("Nothing that is recorded of the machine of the committed run is otherwise here.")
    return said


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


def _facts(other: dict[str, tuple[str, str]]) -> Table:
    table = Table()
    for heading in ("", "committed run", "here"):
        table.add_column(heading, overflow="fold")
    for name, pair in other.items():
        only = " (not in the other)" if name == "instructions" else ""
        table.add_row(escape(name) + only, *map(escape, pair))
    return table
