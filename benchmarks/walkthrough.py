"""What README.md promises a new user, from the clone to a compared experiment that a colleague has: tried, and timed.

python -m benchmarks.walkthrough

Every command below is run as it stands, in a shell, in a fresh clone of HEAD (.venv included); then in a second clone,
the colleague's, which shares with the first one nothing but a git repository and a folder as the DVC remote.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.killing import ROOT, head
from howto.core.atomic import write_json

RESULT = Path(__file__).parent / "results" / "walkthrough.json"
BRANCH = "rank-16"
YOU = [
    "git clone --quiet {git} you",
    "cd you && make doctor",
    "cd you && make run",
    "cd you && . .venv/bin/activate && dvc exp run --name {branch} -S train.lora.r=16",
    "cd you && . .venv/bin/activate && howto compare HEAD",
    "cd you && make experiments",
    "cd you && make remote URL={store}",
    "cd you && git add -A && git commit --quiet -m 'Rank 16, and where its data lies' && git push --quiet",
    "cd you && make push",
]
COLLEAGUE = [
    "git clone --quiet {git} colleague",
    "cd colleague && make pull",
    "cd colleague && make run",
    "cd colleague && . .venv/bin/activate && howto compare HEAD~1",
    "cd colleague && . .venv/bin/activate && howto ask 'How do I wash a kimono?'",
]


def main() -> None:
    """Run every command, look at what has to hold, and keep the times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        places = {"git": str(folder / "shared.git"), "store": str(folder / "store"), "branch": BRANCH}
        subprocess.run(["git", "clone", "--quiet", "--bare", str(ROOT), places["git"]], check=True)
        done = [step(folder, command.format(**places), places) for command in (*YOU, *COLLEAGUE)]
        said = {command: text for command, text, _ in done}
        compared = next(text for command, text in said.items() if "--against HEAD~1" in command)
        again = next(text for command, text in said.items() if command == "cd colleague && make run")
        if running := re.findall(r"Running stage '([^']+)'", again):
            sys.exit(f"the colleague's `make run` ran {', '.join(running)}")
    result = {
        **head("walkthrough"),
        "seconds": {command: round(seconds, 1) for command, _, seconds in done},
        "you_minutes": round(sum(seconds for *_, seconds in done[: len(YOU)]) / 60, 1),
        "colleague_minutes": round(sum(seconds for *_, seconds in done[len(YOU) :]) / 60, 1),
        "verdict": next(line for line in compared.splitlines() if " interval [" in line),
        "stages_that_the_colleague_ran": running,
    }
    print(json.dumps(result, indent=2))
    write_json(RESULT, result)


def step(folder: Path, command: str, places: dict[str, str]) -> tuple[str, str, float]:
    """Run one command in a shell; as it is shown (without this machine's paths), what it printed, and seconds."""
    shown = command
    for key, path in places.items():
        shown = shown.replace(path, f"<{key}>" if key != "branch" else path)
    print(f"$ {shown}", flush=True)
    identity = {f"GIT_{role}_{part}": "new user" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment["PATH"] = os.pathsep.join(
        part for part in environment["PATH"].split(os.pathsep) if not part.startswith(str(ROOT))
    )
    start = time.monotonic()
    ran = subprocess.run(
        ["bash", "-c", command],
        check=False,
        cwd=folder,
        env={**environment, **identity, "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if ran.returncode:
        sys.exit(f"{shown}: exit status {ran.returncode}\n{ran.stdout[-4000:]}")
    return shown, ran.stdout, time.monotonic() - start


if __name__ == "__main__":
    main()
