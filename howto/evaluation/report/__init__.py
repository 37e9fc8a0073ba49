"""Write the report that a person opens in a browser after a run: one HTML file that needs no network.

page.html is its frame; page.css and page.js are put into it. Texts of rows go in as JSON, never as HTML.
"""

import base64
import csv
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from howto.core.atomic import atomic_file
from howto.core.errors import UserError
from howto.evaluation.baselines import LABELS

# In JSON these occur only within strings, where an escape means the same. Escaped, no text can end the <script> that
# holds the JSON, or begin a comment in it.
ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


@dataclass(frozen=True)
class Content:
    """What the page shows. Scores and shares are in 0..1; what is absent or None in a mapping is not shown."""

    title: str
    verdict: str
    cost: str  # on general text and plain questions, in a sentence; "" if not measured
    tokenizer: str  # as in params.yaml
    facts: dict[str, str]  # what the run was made with, label to text
    metrics: Mapping[str, Any]  # as in metrics/evaluation.json
    slices: list[dict[str, Any]]  # `slice`, `group`, `rows`, and `base`, `adapter`, `delta` with `_low` and `_high`
    train_loss: list[tuple[int, float]]  # (optimizer step, loss)
    validation_loss: list[tuple[int, float]]
    validation_rouge_l: list[tuple[int, float]]  # (optimizer step, ROUGE-L of answers)
    rows: list[dict[str, Any]]  # as in log/hasil.jsonl
    chat: list[dict[str, Any]]  # as of `chat_rows`: plain questions with both answers


def write_report(path: Path, content: Content) -> None:
    """Write the page atomically. The same content gives the same bytes."""
    kinds = "html", "css", "js"
    page, style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in kinds)
    values = {"policy": _policy(style, script), "style": style, "script": script, "content": _json(content)}
    with atomic_file(path) as file:
        file.write(Template(page).substitute(values))


def read_curve(path: Path) -> list[tuple[int, float]]:
    """Return (optimizer step, value) from each line of a curve of training, such as metrics/train_loss.csv.

    Raise UserError if the file is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [(int(line["step"]), float(line[path.stem])) for line in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Make it with `dvc repro train`.") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: damaged. Make it again with `dvc repro -f train`.") from None


def _json(content: Content) -> str:
    """The content as JSON in ASCII, because a UTF-8 file cannot hold half a surrogate pair."""
    values = {**vars(content), "baseline_labels": LABELS}
    return json.dumps(_finite(values), allow_nan=False, separators=(",", ":")).translate(ESCAPES)


def _finite(value: Any) -> Any:
    """The value with None for each number that JSON lacks: the loss of a training that diverged is NaN."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _policy(style: str, script: str) -> str:
    """A content security policy that allows this style and this script, and nothing else."""
    digests = [base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode() for text in (style, script)]
    return (
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    ).format(*digests)
