"""Fine-tune SmolLM2-135M on real databricks-dolly-15k rows and score it on the 500 DollyEval rows.

python -m experiments.dolly.study --rows FILE --test FILE [--work FOLDER] [--precision bfloat16]

FILE is JSON lines in Dolly's columns; the rows themselves are not in this repository. The study takes an hour on 2
CPU cores in bfloat16, for CPUs with avx512_bf16 or amx_bf16. Stopped at any moment, it resumes when it is run again.

writes:  results.json
"""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.pipeline import in_precision, params_with, run_in
from howto.core.atomic import write_json
from howto.core.errors import reports_errors
from howto.core.hashing import sha256_of

RESULTS = Path(__file__).with_name("results.json")
PROFILE = "profiles.smollm2_dolly"


@reports_errors
def main() -> None:
    """Run the study, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="the rows to train on")
    parser.add_argument("--test", type=Path, required=True, help="the rows to score")
    parser.add_argument("--work", type=Path, default=Path("models/checkpoints/study_dolly"), help="(%(default)s)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    files = {"rows": arguments.rows.resolve(), "test": arguments.test.resolve()}
    changes = {
        "profile": "smollm2_dolly",
        f"{PROFILE}.data.source": str(files["rows"]),
        f"{PROFILE}.data.test_source": str(files["test"]),
        **{f"{PROFILE}.data.{key}": None for key in ("revision", "file", "sha256")},
        f"{PROFILE}.prepare.test": None,
        **in_precision(PROFILE, arguments.precision),
    }
    found = run_in(arguments.work, params_with(changes))
    hashes = {name: sha256_of(path) for name, path in files.items()}
    write_json(RESULTS, {"sha256": hashes, "precision": arguments.precision, **found})
    print(f"study: {found['base']['rougeL']:.4f} -> {found['adapter']['rougeL']:.4f} -> {RESULTS}")


if __name__ == "__main__":
    main()
