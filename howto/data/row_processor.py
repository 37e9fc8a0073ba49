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
from howto.core.schema import Message, Row, input_of
from howto.core.step_lists import is_procedural
from howto.data.arrays import U64, Arrays
from howto.data.clean_text import Cleaner, normal_key, repeats
from howto.data.config import Prepare, Reject
from howto.data.formats.raw_rows import RawTexts, parse_row
from howto.data.formats.readers import Chunk
from howto.data.formats.row_formats import BadRow, RowFormat, RowFormats
from howto.data.minhash import shingles, sign

TEXTS = ("intent", "context", "response")
ID_LENGTH = 16
SHOWN = 200  # bytes of a bad row that rejected.jsonl has
# One number for each part of a row's key, added to its shingles: the same words in another part are other shingles.
_TAGS = np.array([0, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3], dtype=np.uint64)

Key = tuple[str, str, str, str]  # normal keys: intent, context, response, and what was said before (see `_key`)


@dataclass(frozen=True)
class ProcessedChunk:
    """The rows of a chunk: first all of them, then (from `lines` on) those that can be used."""

    path: Path
    formats: Counter[RowFormat]  # of the rows that can be read
    counts: Counter[str]  # "raw" rows, rejected ones by reason, and those that a cleaning step changed by its name
    problem: str  # file, line and problem of the first bad row
    rejected: bytes  # lines of rejected.jsonl
    lines: bytes  # in Alpaca's format, as JSON lines
    keys: bytes  # the key of each row, its parts joined by NUL
    categories: list[str]
    sources: list[str]
    arrays: Arrays  # see `_arrays`


class RowProcessor:
    """Processes chunks as the `prepare` params say. It can be sent to another process."""

    def __init__(self, params: Prepare, test_folder: Path, folder_of_sources: Path | None = None) -> None:
        """Files in `test_folder` are a given test: of their rows, only bad and empty ones are rejected.

        The folders in `folder_of_sources`, if it is given, have the names of the sources whose files are in them.
        """
        self._params = params
        self._test_folder = test_folder
        self._folder_of_sources = folder_of_sources
        self._cleaner = Cleaner(params.clean)
        self._formats = RowFormats(params.columns)
        self._instruction = self._cleaner.clean(params.instruction, marks=False)[0]

    def __call__(self, chunk: Chunk) -> ProcessedChunk:
        """Clean, check and hash the rows of a chunk.

        Raise UserError if a row is bad, and params say that one stops the run.
        """
        formats, counts, problem = Counter[RowFormat](), Counter[str](), ""
        rows, numbers, rejected = list[Row](), list[int](), list[bytes]()
        is_test = self._test_folder in chunk.path.parents
        name = ""
        if (folder := self._folder_of_sources) and folder in chunk.path.parents:
            name = chunk.path.relative_to(folder).parts[0]
        for number, line in enumerate(chunk.rows, chunk.first):
            if line.isspace():
                continue
            counts["raw"] += 1
            source = f"{chunk.path}:{number}"
            try:
                raw, found = parse_row(line, self._formats)
            except BadRow as bad:
                if self._params.bad_rows == "stop":
                    fix = "Fix the row or prepare.columns, or set prepare.bad_rows to reject."
                    raise UserError(f"{source}: {bad}. {fix}") from None
                problem = problem or f"{source}: {bad}"
                counts["bad_row"] += 1
                text = line[:SHOWN].decode("utf-8", "backslashreplace").rstrip()
                rejected.append(
                    rejected_line({"source": source, "reason": "bad_row", "detail": str(bad), "text": text})
                )
                continue
            formats[found] += 1
            row = self._clean(raw, name, counts)
            if reason := reason_to_reject(row, self._params.reject, is_test=is_test):
                counts[reason] += 1
                rejected.append(rejected_line({"source": source, "reason": reason}, row_line(row)))
                continue
            rows.append(row)
            numbers.append(number)
        keys = [self._key(row) for row in rows]
        joined = ["\0".join(key if key[-1] else key[:-1]).encode() for key in keys]
        arrays = self._arrays(rows, keys, joined)
        arrays["given_test"] = np.full(len(rows), is_test)
        arrays["number"] = np.array(numbers, dtype=np.uint32)  # of the row in its file
        return ProcessedChunk(
            path=chunk.path,
            formats=formats,
            counts=counts,
            problem=problem,
            rejected=b"".join(rejected),
            lines=b"".join(map(row_line, rows)),
            keys=b"".join(joined),
            categories=[row.category for row in rows],
            sources=[row.source for row in rows],
            arrays=arrays,
        )

    def _clean(self, raw: RawTexts, source: str, counts: Counter[str]) -> Row:
        """Return the row in Alpaca's format, and count the cleaning steps that changed it.

        Without a `source`, a row that `prepare` wrote keeps its own.
        """
        steps: set[str] = set()

        def clean(text: str, *, marks: bool = True) -> str:
            text, changed = self._cleaner.clean(text, marks=marks)
            steps.update(changed)
            return text

        intent, context, output = clean(raw.instruction, marks=False), clean(raw.context), clean(raw.response)
        if context and intent.endswith(f"\n\n{context}"):  # a row that `prepare` wrote
            intent = intent[: -len(context) - 2].rstrip()
        references = tuple(filter(None, map(clean, raw.references)))
        history = [clean(text, marks=number % 2 == 1) for number, text in enumerate(raw.history)]
        system = clean(raw.system, marks=False)
        counts.update(steps)
        identity = [intent, context, output]
        if system in ("", self._instruction):
            system = self._params.instruction
        if history or system != self._params.instruction:
            identity += [system, *history]
        return Row(
            id=hashlib.sha256("\0".join(identity).encode()).hexdigest()[:ID_LENGTH],
            category=raw.category.strip() or "none",
            instruction=system,
            input=input_of(intent, context),
            context=context,
            output=output,
            references=references,
            history=tuple(
                Message(role="assistant" if number % 2 else "user", content=text) for number, text in enumerate(history)
            ),
            source=source or raw.source,
        )

    def _key(self, row: Row) -> Key:
        """Return the normal keys of a row's texts.

        The last one has a line for the row's own system message, or an empty one, and for each turn of the history. It
        is "" if the row has neither.
        """
        before = [normal_key(message.content) for message in row.history]
        system = "" if row.instruction == self._params.instruction else normal_key(row.instruction)
        said = "\n".join([system, *before]) if system or before else ""
        return normal_key(row.intent), normal_key(row.context), normal_key(row.output), said

    def _arrays(self, rows: list[Row], keys: list[Key], joined: list[bytes]) -> Arrays:
        """Return what compares and counts the rows. The hashes are of normal keys; that of "row" is of all.

        The arrays whose names begin with "turn" have an entry for each turn of the user in a history.
        """
        params = self._params
        intents = [intent.encode() for intent, *_ in keys]
        turns = [(row, place, turn) for row, key in enumerate(keys) for place, turn in enumerate(earlier_turns(key[3]))]
        texts = [turn for *_, turn in turns]
        first = {row: turn.encode() for row, place, turn in turns if place == 0}
        lengths = [(len(row.intent), len(row.context), len(row.output)) for row in rows]
        arrays: Arrays = {
            "intent": _hashes(intents),
            "context": _hashes([context.encode() for _, context, *_ in keys]),
            "said": _hashes([said.encode() for *_, said in keys]),
            "row": _hashes(joined),
            # In [0, 1). By the first turn of the user, so that what is made of one conversation stays together.
            "place": _hashes([b"%d %b" % (params.split.seed, first.get(row, text)) for row, text in enumerate(intents)])
            / 2.0**64,
            "turn": _hashes([turn.encode() for turn in texts]),
            "turn_row": np.array([row for row, *_ in turns], dtype=np.int64),
            "turn_place": np.array([place for _, place, _ in turns], dtype=np.uint32),
            "key_size": np.array(list(map(len, joined)), dtype=np.uint32),  # bytes
            "lengths": np.array(lengths, dtype=np.uint32).reshape(-1, len(TEXTS)),  # characters
            "procedural": np.array([is_procedural(row.output) for row in rows], dtype=bool),
        }
        if not params.duplicates.exact:
            arrays["id"] = np.array([int(row.id, 16) for row in rows], dtype=np.uint64)
        if near := params.duplicates.near:
            arrays["row_bands"], arrays["row_sketches"] = sign(*_row_shingles(keys), near)
        if near := params.split.near_intents:
            for what, keys_of in (("intent", [intent for intent, *_ in keys]), ("turn", texts)):
                arrays[f"{what}_bands"], arrays[f"{what}_sketches"] = sign(*shingles(keys_of), near)
        return arrays


def reason_to_reject(row: Row, reject: Reject, *, is_test: bool) -> str | None:
    """Return the reason to leave a row out, or None."""
    characters, any_row = len(row.output), not is_test
    reasons = {
        "empty_instruction": reject.empty and not all([row.intent, *(turn.content for turn in row.history[::2])]),
        "empty_response": reject.empty and not all([row.output, *(turn.content for turn in row.history[1::2])]),
        "repeated_context": any_row and reject.repeated_context and repeats(row.output, row.context),
        "too_short": any_row and characters < (reject.min_characters or 0),
        "too_long": any_row and characters > (reject.max_characters or characters),
        "not_procedural": any_row and reject.not_procedural and not is_procedural(row.output),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def earlier_turns(said: str) -> list[str]:
    """Return the keys of the user's turns in the last part of a key."""
    return said.split("\n")[1::2]


def row_line(row: Row) -> bytes:
    """Return the row as a line of JSON."""
    return row.model_dump_json(exclude_defaults=True).encode() + b"\n"


def copy_of(line: bytes, number: int) -> bytes:
    """Return a line of `row_line` with another id, that of a copy of the row: answers are found by the id."""
    start = len(b'{"id":"')
    end = start + ID_LENGTH
    return (
        line[:start]
        + hashlib.sha256(b"%b %d" % (line[start:end], number)).hexdigest().encode()[:ID_LENGTH]
        + line[end:]
    )


def rejected_line(about: dict[str, str], row: bytes = b"") -> bytes:
    """Return a line of rejected.jsonl: what is said about a row, and the row as `row_line` gives it."""
    line = json.dumps(about, ensure_ascii=False, separators=(",", ":")).encode()
    return line[:-1] + b',"row":' + row.rstrip(b"\n") + b"}\n" if row else line + b"\n"


def _row_shingles(keys: list[Key]) -> tuple[U64, U64]:
    """Return the shingles of whole rows: those of the parts of their keys, each tagged with its part.

    If the Jaccard index of each of the sets is at least t, so is that of their union.
    """
    hashes, offsets = shingles([text for key in keys for text in key])
    tags = np.repeat(np.tile(_TAGS, len(keys)), np.diff(offsets).astype(np.int64))
    return hashes + tags, offsets[:: len(_TAGS)].copy()


def _hashes(texts: list[bytes]) -> U64:
    """Return 64 bits of each text's BLAKE2b hash; 0 for an empty text."""
    digests = [hashlib.blake2b(text, digest_size=8).digest() if text else bytes(8) for text in texts]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)
