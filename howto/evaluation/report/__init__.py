"""The report that a person opens in a browser after a run: one HTML file that needs no network.

The page stands beside this module: page.html with page.css and page.js, which are put into it.
What a row says goes in as JSON, never as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from howto.core.atomic import atomic_file

PAGE = Path(__file__).with_name("page.html")
STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")

# In JSON these stand only within strings, where \uXXXX says the same. Without them no text can end the <script> that
# holds the JSON, or begin a comment in it.
ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})


@dataclass(frozen=True)
class Content:
    """What the page shows. Scores and shares are in 0..1; what is absent or None in a mapping is not shown."""

    title: str
    verdict: str
    """One sentence that says what the run found."""
    facts: dict[str, str]
    """What the run was made with, label to text."""
    metrics: dict[str, Any]
    """What metrics.json holds: `base`, `adapter`, `delta`, `floors`, `ceiling`, and counts of rows and seeds."""
    slices: list[dict[str, Any]]
    """For each group of a slice: `slice`, `group`, `rows`, and `base`, `adapter`, `delta` with `_low` and `_high`."""
    train_loss: list[tuple[int, float]]
    """(optimizer step, loss)."""
    validation_loss: list[tuple[int, float]]
    """(optimizer step, loss)."""
    rows: list[dict[str, Any]]
    """The held-out rows with both answers and both scores, as in log/hasil.jsonl."""


def write_report(path: Path, content: Content) -> None:
    """Write the page, whole or not at all. The same content gives the same bytes."""
    style, script = STYLE.read_text(encoding="utf-8"), SCRIPT.read_text(encoding="utf-8")
    page = Template(PAGE.read_text(encoding="utf-8")).substitute(
        policy=_policy(style, script), style=style, script=script, content=_json(content)
    )
    with atomic_file(path) as file:
        file.write(page)


def _json(content: Content) -> str:
    """The content as JSON in ASCII: so even half a surrogate pair, which no UTF-8 file can hold, can be written."""
    return json.dumps(_finite(vars(content)), allow_nan=False, separators=(",", ":")).translate(ESCAPES)


def _finite(value: Any) -> Any:
    """The value with None for each number that JSON lacks: the loss of a training that diverged is NaN."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _policy(style: str, script: str) -> str:
    """A content security policy under which this style and this script work, and nothing else is loaded or run."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}"
