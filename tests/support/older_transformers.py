"""Compare what transformers 4.57 and this environment's transformers make of model folders.

python -m tests.support.older_transformers FOLDER...

It installs transformers 4.57 and the releases of its time that it needs into a folder of its own, within seconds. torch
and the rest are this environment's, so only transformers differs.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import greedy_answers

PACKAGES = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2")


def install(folder: Path) -> str:
    """Install the packages into `folder`. Return "", or the reason why it is not possible here."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
    return "" if done.returncode == 0 else f"{PACKAGES[0]} cannot be installed ({' '.join(lines)[:200]})"


def describe(folders: list[str], packages: Path | None = None) -> dict[str, Any]:
    """Return what transformers makes of each folder, and its version; with `packages`, the one in that folder."""
    environment = {**os.environ, "PYTHONPATH": str(packages or ""), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(greedy_answers.__file__), *folders]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Print for each folder whether both read it alike, and what differs; exit with status 1 if something does."""
    folders = sys.argv[1:]
    with tempfile.TemporaryDirectory() as packages:
        if problem := install(Path(packages)):
            sys.exit(f"error: {problem}")
        old, new = describe(folders, Path(packages)), describe(folders)
    print(f"transformers {old.pop('version')} and {new.pop('version')}")
    for folder, expected in new.items():
        different = [key for key, value in expected.items() if old[folder][key] != value]
        print(f"{folder}: {'the same token ids and answers' if not different else f'other {different}'}")
    sys.exit(0 if old == new else 1)


if __name__ == "__main__":
    main()
