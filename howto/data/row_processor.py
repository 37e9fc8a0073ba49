"""From raw rows to rows as the model sees them, and to the few numbers by which duplicates and leaks are found.

This is the part of `prepare` that looks at one row at a time, so that several processes can share it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from howto.core.errors import UserError
from howto.core.schema import Row, input_of
from howto.core.step_lists import is_procedural
from howto.data.chunks import Chunk
from howto.data.clean_text import Cleaner, normal_key, repeats
from howto.data.config import Prepare, Reject
from howto.data.minhash import U8, U32, U64, shingles, sign, unsigned
from howto.data.records import BadRow, Fields

FIELDS = ("intent", "context", "response")
# One number a field, added to its shingles, so that the same words in another field are other shingles.
_TAGS = np.array([0, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB], dtype=np.uint64)


@dataclass
class Numbers:
    """What is kept in memory of usable rows: arrays with one entry a row, [rows] where not said."""

    lines: U32  # line, or place, in the raw file
    sizes: U32  # bytes of the row's text as JSON
    intents: U64  # hashes of the normal keys of intent, context (0: none) and all three texts
    contexts: U64
    rows: U64
    places: NDArray[np.float64]  # where the intent's hash falls in [0, 1)
    lengths: U32  # [rows, 3], characters of intent, context and response
    procedural: NDArray[np.bool_]
    row_bands: U32  # signatures of whole rows and of intents: see `near`; [rows, 0] where they are not wanted
    row_sketches: U8
    intent_bands: U32
    intent_sketches: U8


@dataclass(frozen=True)
class Digest:
    """What is left of the rows of a chunk."""

    path: Path
    size: int  # bytes of the raw file that were read
    seen: int  # raw rows, rejected ones among them
    rejected: list[bytes]  # lines of rejected.jsonl
    reasons: Counter[str]
    problem: str  # where the first bad row stands, and what is wrong with it
    cleaned: Counter[str]  # rows that each step of cleaning changed
    lines: list[bytes]  # the usable rows in Alpaca's format, as JSON
    categories: list[str]
    numbers: Numbers


class Digester:
    """Digests chunks by the `prepare` params. It can be sent to another process."""

    def __init__(self, params: Prepare, test_folder: Path) -> None:
        """Rows from files in `test_folder` are a test that was given: it is left as it is, as far as it can be."""
        self._params = params
        self._test_folder = test_folder
        self._cleaner = Cleaner(params.clean)

    def __call__(self, chunk: Chunk) -> Digest:
        """Clean, check and hash the rows of a chunk.

        Raises:
            UserError: a bad row, if params say that one stops the run.
        """
        reject = self._params.reject
        if self._test_folder in chunk.path.parents:
            nothing = Reject(
                empty=False, repeated_context=False, min_characters=None, max_characters=None, not_procedural=False
            )
            reject = nothing.model_copy(update={"empty": reject.empty})
        rows: list[Row] = []
        lines: list[int] = []
        rejected: list[bytes] = []
        reasons: Counter[str] = Counter()
        cleaned: Counter[str] = Counter()
        seen, problem = 0, ""
        for raw in chunk.fields(self._params.columns):
            seen += 1
            where = f"{chunk.path}:{raw.number}"
            if isinstance(raw, BadRow):
                if self._params.bad_rows == "stop":
                    raise UserError(
                        f"{where}: {raw.problem}; mend or remove it, or say `bad_rows: reject` in params.yaml"
                    )
                reasons["bad_row"] += 1
                problem = problem or f"{where}: {raw.problem}"
                rejected.append(rejected_line(where, "bad_row", raw.problem, text=raw.text))
                continue
            row, steps = self._clean(raw)
            cleaned.update(steps)
            reason = why_not(row, reject)
            if reason is None:
                rows.append(row)
                lines.append(raw.number)
            else:
                reasons[reason] += 1
                rejected.append(rejected_line(where, reason, row=row_line(row)))
        texts = [row_line(row) for row in rows]
        return Digest(
            path=chunk.path,
            size=chunk.size,
            seen=seen,
            rejected=rejected,
            reasons=reasons,
            problem=problem,
            cleaned=cleaned,
            lines=texts,
            categories=[row.category for row in rows],
            numbers=self._numbers(rows, lines, texts),
        )

    def _clean(self, raw: Fields) -> tuple[Row, set[str]]:
        """The row in Alpaca's format, and the names of the steps of cleaning that changed it."""
        intent, changed = self._cleaner.clean(raw.instruction, marks=False)
        context, more = self._cleaner.clean(raw.context, marks=True)
        steps = {*changed, *more}
        output, more = self._cleaner.clean(raw.response, marks=True)
        steps.update(more)
        references = tuple(text for text, _ in (self._cleaner.clean(one, marks=True) for one in raw.references) if text)
        if context and intent.endswith(f"\n\n{context}"):  # rows of this very format
            intent = intent[: -len(context) - 2].rstrip()
        digest = hashlib.sha256("\0".join([intent, context, output]).encode())
        row = Row(
            id=digest.hexdigest()[:16],
            category=raw.category.strip() or "none",
            instruction=self._params.instruction,
            input=input_of(intent, context),
            context=context,
            output=output,
            references=references,
        )
        return row, steps

    def _numbers(self, rows: list[Row], lines: list[int], texts: list[bytes]) -> Numbers:
        keys = [normal_keys(row) for row in rows]
        intents = [intent for intent, _, _ in keys]
        near_rows, near_intents = self._params.duplicates.near, self._params.split.near_intents
        of_rows = sign(*_row_shingles(keys), near_rows) if near_rows else unsigned(len(rows))
        of_intents = sign(*shingles(intents), near_intents) if near_intents else unsigned(len(rows))
        seed = self._params.split.seed
        lengths = [(len(row.intent), len(row.context), len(row.output)) for row in rows]
        return Numbers(
            lines=np.array(lines, dtype=np.uint32),
            sizes=np.fromiter(map(len, texts), dtype=np.uint32, count=len(texts)),
            intents=_hashes(intents),
            contexts=_hashes([context for _, context, _ in keys]),
            rows=_hashes(["\0".join(key) for key in keys]),
            places=_hashes([f"{seed} {intent}" for intent in intents]) / 2.0**64,
            lengths=np.array(lengths, dtype=np.uint32).reshape(-1, 3),
            procedural=np.array([is_procedural(row.output) for row in rows], dtype=bool),
            row_bands=of_rows.bands,
            row_sketches=of_rows.sketches,
            intent_bands=of_intents.bands,
            intent_sketches=of_intents.sketches,
        )


def why_not(row: Row, reject: Reject) -> str | None:
    """The reason for which a row is left out; None if it is used."""
    characters = len(row.output)
    if reject.empty and not row.intent:
        return "empty_instruction"
    if reject.empty and not row.output:
        return "empty_response"
    if reject.repeated_context and row.context and repeats(row.output, row.context):
        return "repeated_context"
    if reject.min_characters is not None and characters < reject.min_characters:
        return "too_short"
    if reject.max_characters is not None and characters > reject.max_characters:
        return "too_long"
    return "not_procedural" if reject.not_procedural and not is_procedural(row.output) else None


def row_line(row: Row) -> bytes:
    """The row as a line of JSONL."""
    return row.model_dump_json(exclude_defaults=True).encode() + b"\n"


def rejected_line(source: str, reason: str, detail: str = "", *, row: bytes = b"", text: str | None = None) -> bytes:
    """A line of rejected.jsonl: where the row stood, why it is not used, and what it said.

    `row` is a line of `row_line`; `text` the beginning of what is no row.
    """
    head: dict[str, Any] = {"source": source, "reason": reason}
    if detail:
        head["detail"] = detail
    if text is not None:
        head["text"] = text
    line = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    return line[:-1] + b',"row":' + row.rstrip(b"\n") + b"}\n" if row else line + b"\n"


def normal_keys(row: Row) -> tuple[str, str, str]:
    """The normal keys of intent, context and response."""
    return normal_key(row.intent), normal_key(row.context), normal_key(row.output)


def _row_shingles(keys: Sequence[tuple[str, str, str]]) -> tuple[U64, U64]:
    """The shingles of whole rows: those of their texts, each marked with its field.

    Where each of the three sets has a Jaccard index of at least t, so has their union.
    """
    hashes, offsets = shingles([text for key in keys for text in key])
    tags = np.tile(_TAGS, len(keys))
    hashes = hashes + np.repeat(tags, np.diff(offsets).astype(np.int64))
    return hashes, offsets[:: len(FIELDS)].copy()


def _hashes(texts: list[str]) -> U64:
    """64 bits of each text's BLAKE2b hash; 0 for an empty text."""
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() if text else bytes(8) for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
