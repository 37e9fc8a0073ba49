"""Turn raw rows into rows as the model sees them, and into the numbers that find duplicates and leaks.

This is the part of `prepare` that looks at one row at a time, so several processes can share it.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from howto.core.errors import UserError
from howto.core.schema import Row, input_of
from howto.core.step_lists import is_procedural
from howto.data.arrays import U64, Arrays
from howto.data.clean_text import Cleaner, normal_key, repeats
from howto.data.config import Prepare, Reject
from howto.data.minhash import shingles, sign
from howto.data.raw_rows import BadRow, RawTexts, parse_row
from howto.data.readers import Chunk

TEXTS = ("intent", "context", "response")
SHOWN = 200  # bytes of a bad row that rejected.jsonl has
# One number for each text, added to its shingles: the same words in another text of the row are other shingles.
_TAGS = np.array([0, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB], dtype=np.uint64)


@dataclass(frozen=True)
class ProcessedChunk:
    """The rows of a chunk: first all of them, then (from `lines` on) those that can be used."""

    path: Path
    counts: Counter[str]  # "raw" rows, rejected ones by reason, and those that a cleaning step changed by its name
    problem: str  # file, line and problem of the first bad row
    rejected: bytes  # lines of rejected.jsonl
    lines: bytes  # in Alpaca's format, as JSON lines
    keys: bytes  # one after the other: the normal keys of intent, context and response, joined by NUL
    categories: list[str]
    arrays: Arrays  # see `_arrays`


class RowProcessor:
    """Processes chunks as the `prepare` params say. It can be sent to another process."""

    def __init__(self, params: Prepare, test_folder: Path) -> None:
        """Files in `test_folder` are a given test: of their rows, only bad and empty ones are rejected."""
        self._params = params
        self._test_folder = test_folder
        self._cleaner = Cleaner(params.clean)

    def __call__(self, chunk: Chunk) -> ProcessedChunk:
        """Clean, check and hash the rows of a chunk.

        Raise UserError if a row is bad, and params say that one stops the run.
        """
        counts, problem = Counter[str](), ""
        rows, numbers, rejected = list[Row](), list[int](), list[bytes]()
        is_test = self._test_folder in chunk.path.parents
        for number, line in enumerate(chunk.rows, chunk.first):
            if line.isspace():
                continue
            counts["raw"] += 1
            source = f"{chunk.path}:{number}"
            try:
                row = self._clean(parse_row(line, self._params.columns), counts)
            except BadRow as bad:
                if self._params.bad_rows == "stop":
                    raise UserError(f"{source}: {bad}. Fix the row, or set prepare.bad_rows to reject.") from None
                problem = problem or f"{source}: {bad}"
                counts["bad_row"] += 1
                text = line[:SHOWN].decode("utf-8", "backslashreplace").rstrip()
                rejected.append(
                    rejected_line({"source": source, "reason": "bad_row", "detail": str(bad), "text": text})
                )
                continue
            if reason := reason_to_reject(row, self._params.reject, is_test=is_test):
                counts[reason] += 1
                rejected.append(rejected_line({"source": source, "reason": reason}, row_line(row)))
                continue
            rows.append(row)
            numbers.append(number)
        keys = [(normal_key(row.intent), normal_key(row.context), normal_key(row.output)) for row in rows]
        joined = ["\0".join(key).encode() for key in keys]
        arrays = self._arrays(rows, keys, joined)
        arrays["given_test"] = np.full(len(rows), is_test)
        arrays["number"] = np.array(numbers, dtype=np.uint32)  # of the row in its file
        return ProcessedChunk(
            path=chunk.path,
            counts=counts,
            problem=problem,
            rejected=b"".join(rejected),
            lines=b"".join(map(row_line, rows)),
            keys=b"".join(joined),
            categories=[row.category for row in rows],
            arrays=arrays,
        )

    def _clean(self, raw: RawTexts, counts: Counter[str]) -> Row:
        """Return the row in Alpaca's format, and count the cleaning steps that changed it."""
        steps: set[str] = set()

        def clean(text: str, *, marks: bool = True) -> str:
            text, changed = self._cleaner.clean(text, marks=marks)
            steps.update(changed)
            return text

        intent, context, output = clean(raw.instruction, marks=False), clean(raw.context), clean(raw.response)
        if context and intent.endswith(f"\n\n{context}"):  # a row that `prepare` wrote
            intent = intent[: -len(context) - 2].rstrip()
        references = tuple(filter(None, map(clean, raw.references)))
        counts.update(steps)
        return Row(
            id=hashlib.sha256("\0".join([intent, context, output]).encode()).hexdigest()[:16],
            category=raw.category.strip() or "none",
            instruction=self._params.instruction,
            input=input_of(intent, context),
            context=context,
            output=output,
            references=references,
        )

    def _arrays(self, rows: list[Row], keys: list[tuple[str, str, str]], joined: list[bytes]) -> Arrays:
        """Return what compares and counts the rows. The hashes are of normal keys; that of "row" is of all three."""
        params = self._params
        intents = [intent.encode() for intent, _, _ in keys]
        lengths = [(len(row.intent), len(row.context), len(row.output)) for row in rows]
        arrays: Arrays = {
            "intent": _hashes(intents),
            "context": _hashes([context.encode() for _, context, _ in keys]),
            "row": _hashes(joined),
            "place": _hashes([b"%d %b" % (params.split.seed, intent) for intent in intents]) / 2.0**64,  # in [0, 1)
            "key_size": np.array(list(map(len, joined)), dtype=np.uint32),  # bytes
            "lengths": np.array(lengths, dtype=np.uint32).reshape(-1, len(TEXTS)),  # characters
            "procedural": np.array([is_procedural(row.output) for row in rows], dtype=bool),
        }
        if near := params.duplicates.near:
            arrays["row_bands"], arrays["row_sketches"] = sign(*_row_shingles(keys), near)
        if near := params.split.near_intents:
            arrays["intent_bands"], arrays["intent_sketches"] = sign(*shingles([intent for intent, _, _ in keys]), near)
        return arrays


def reason_to_reject(row: Row, reject: Reject, *, is_test: bool) -> str | None:
    """Return the reason to leave a row out, or None."""
    characters, any_row = len(row.output), not is_test
    reasons = {
        "empty_instruction": reject.empty and not row.intent,
        "empty_response": reject.empty and not row.output,
        "repeated_context": any_row and reject.repeated_context and repeats(row.output, row.context),
        "too_short": any_row and characters < (reject.min_characters or 0),
        "too_long": any_row and characters > (reject.max_characters or characters),
        "not_procedural": any_row and reject.not_procedural and not is_procedural(row.output),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def row_line(row: Row) -> bytes:
    """Return the row as a line of JSON."""
    return row.model_dump_json(exclude_defaults=True).encode() + b"\n"


def rejected_line(about: dict[str, str], row: bytes = b"") -> bytes:
    """Return a line of rejected.jsonl: what is said about a row, and the row as `row_line` gives it."""
    line = json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode()
    return line[:-1] + b',"row":' + row.rstrip(b"\n") + b"}\n" if row else line + b"\n"


def _row_shingles(keys: list[tuple[str, str, str]]) -> tuple[U64, U64]:
    """Return the shingles of whole rows: those of the three texts, each tagged with its text.

    If the Jaccard index of each of the three sets is at least t, so is that of their union.
    """
    hashes, offsets = shingles([text for key in keys for text in key])
    tags = np.repeat(np.tile(_TAGS, len(keys)), np.diff(offsets).astype(np.int64))
    return hashes + tags, offsets[:: len(TEXTS)].copy()


def _hashes(texts: list[bytes]) -> U64:
    """Return 64 bits of each text's BLAKE2b hash; 0 for an empty text."""
    digests = [hashlib.blake2b(text, digest_size=8).digest() if text else bytes(8) for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
