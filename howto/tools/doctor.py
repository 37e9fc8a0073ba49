"""Whether this machine can run the active profile, what is in the way, and what to do about it.

howto doctor        one screen; exit status 1 if something would stop a run

It starts with what Python itself has, so that it also works where packages are missing or broken: then that is what it
finds. Nothing is changed, and nothing is fetched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from howto.tools.check_machine import check_cores, check_cpu, check_device, check_memory_and_disk
from howto.tools.check_network import check_hub, check_remote
from howto.tools.check_setup import (
    VENV,
    check_folder,
    check_git_and_dvc,
    check_locks,
    check_packages,
    check_params,
    check_python,
)
from howto.tools.finding import OK, PROBLEM, WARNING, Asked, Finding

CHECKS: tuple[Callable[[Asked], list[Finding]], ...] = (
    check_python,
    check_packages,
    check_params,
    check_git_and_dvc,
    check_locks,
    check_folder,
    check_device,
    check_memory_and_disk,
    check_cores,
    check_cpu,
    check_hub,
    check_remote,
)
COLOURS = {OK: "green", WARNING: "yellow", PROBLEM: "bold red"}


def examine() -> list[Finding]:
    """All findings of the working directory, in the order of the checks, which are made at the same time."""
    asked = _asked()
    with ThreadPoolExecutor(len(CHECKS)) as pool:
        return [finding for found in pool.map(lambda check: _guarded(check, asked), CHECKS) for finding in found]


def _asked() -> Asked:
    try:
        from howto.core.errors import UserError
        from howto.params import read_params
    except Exception:  # of packages that are broken: check_params says so
        return Asked()
    try:
        return Asked(read_params())
    except UserError:
        return Asked()


def _guarded(check: Callable[[Asked], list[Finding]], asked: Asked) -> list[Finding]:
    """Its findings; that a check itself cannot be made is one."""
    try:
        return check(asked)
    except Exception as error:
        name = check.__name__.removeprefix("check_").replace("_", " ")
        said = f"could not be checked: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        level = WARNING if isinstance(error, ImportError) else PROBLEM
        return [Finding(level, name, said, "install the packages of requirements.lock, then ask again")]


def show(findings: list[Finding]) -> None:
    """As a table in a terminal, else (or without rich) line by line."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        _show_plainly(findings)
        return
    if not sys.stdout.isatty():
        _show_plainly(findings)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(max_width=24, overflow="fold")
    table.add_column(overflow="fold")
    for finding in findings:
        said = Text(finding.said)
        if finding.to_do:
            said.append(f"\n-> {finding.to_do}", style="bold")
        table.add_row(Text(finding.level, style=COLOURS[finding.level]), finding.what, said)
    console = Console(highlight=False)
    console.print(table)
    console.print(Text(verdict(findings), style="bold"))


def _show_plainly(findings: list[Finding]) -> None:
    for finding in findings:
        to_do = f" -> {finding.to_do}" if finding.to_do else ""
        print(f"{finding.level:8} {finding.what}: {finding.said}{to_do}")
    print(verdict(findings))


def verdict(findings: list[Finding]) -> str:
    """The last line."""
    problems, warnings = (sum(f.level == level for f in findings) for level in (PROBLEM, WARNING))
    counted = f"{problems} problem{'' if problems == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}"
    if problems and all(f.what.startswith("DVC's remote") for f in findings if f.level == PROBLEM):
        return f"{counted}: a run would get through, `make push` and `make pull` would not"
    if problems:
        return f"{counted}: a run would not get through"
    if not any(f.what == "params.yaml" and f.level == OK for f in findings):
        return f"{counted}: nothing is in the way so far; ask again once `make run` has set up {VENV}"
    return f"{counted}: this machine can run the active profile"


def main() -> None:
    """Look, say what was found, and exit with 1 if there is a problem."""
    findings = examine()
    show(findings)
    sys.exit(int(any(finding.level == PROBLEM for finding in findings)))
