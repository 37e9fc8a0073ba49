"""All usable rows: their texts are on disk; the numbers that compare them are in memory."""

import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from howto.data.arrays import Arrays, Mask, RowNumbers
from howto.data.minhash import jaccard, shingle_set
from howto.data.row_processor import ProcessedChunk, copy_of, earlier_turns

CACHED = 512  # sets of shingles, while pairs are compared
PARTS = ("intent", "context", "row", "said")  # of a key, by the array that has their hashes


class RowStore:
    """The usable rows, numbered from 0 in the order in which they were added, and which of them are rejected.

    First add all chunks, then call `finish`; all other methods come after it.
    """

    def __init__(self, lines: IO[bytes], keys: IO[bytes]) -> None:
        """Keep the rows and their normal keys in these files, which are open for writing and reading."""
        self._lines, self._keys = lines, keys
        self._parts: list[Arrays] = []
        self._paths: list[Path] = []
        self._reasons: list[tuple[str, str]] = []
        self.categories: list[str] = []
        self.sources: list[str] = []  # "" for a row of an only source

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.categories)

    def add(self, chunk: ProcessedChunk) -> None:
        """Add the usable rows of a chunk."""
        self._lines.write(chunk.lines)
        self._keys.write(chunk.keys)
        if chunk.path not in self._paths:
            self._paths.append(chunk.path)
        file = np.full(len(chunk.categories), self._paths.index(chunk.path), dtype=np.uint32)
        arrays = chunk.arrays | {"turn_row": chunk.arrays["turn_row"] + len(self)}
        self._parts.append({"file": file, **arrays})
        self.categories += map(sys.intern, chunk.categories)  # equal names share one string
        self.sources += map(sys.intern, chunk.sources)

    def finish(self) -> None:
        """Make the rows readable, once all are added."""
        self._keys.flush()
        # One name after the other, so that no more than one of them is in memory twice.
        self.arrays = {name: np.concatenate([part.pop(name) for part in self._parts]) for name in list(self._parts[0])}
        self._key_ends = np.cumsum(self.arrays["key_size"], dtype=np.int64)
        self._shingles = lru_cache(maxsize=CACHED)(self._read_shingles)
        self._reason = np.full(len(self), -1, dtype=np.int8)  # place in `_reasons`
        self._match = np.full(len(self), -1, dtype=np.int64)

    def lines(self) -> Iterator[bytes]:
        """Yield the rows as JSON lines. Equal rows, where they may be kept, get ids that differ."""
        self._lines.seek(0)
        if "id" not in self.arrays:
            yield from self._lines
            return
        _, first, number = np.unique(self.arrays["id"], return_index=True, return_inverse=True)
        copies = np.zeros(len(first), dtype=np.int64)
        for row, line in enumerate(self._lines):
            copies[number[row]] += 1
            yield line if first[number[row]] == row else copy_of(line, int(copies[number[row]]))

    def source(self, row: int) -> str:
        """Return where the row was read: file and line."""
        return f"{self._paths[self.arrays['file'][row]]}:{self.arrays['number'][row]}"

    @property
    def used(self) -> Mask:
        """Which rows are not rejected."""
        return self._reason < 0

    def reject(self, reason: str, detail: str, matches: RowNumbers) -> None:
        """Reject the rows that match another one, unless they are rejected already.

        `matches` has that other row, or -1, for each row. `detail` is a phrase that its source will complete.
        """
        new = (matches >= 0) & self.used
        self._reason[new] = len(self._reasons)
        self._match[new] = matches[new]
        self._reasons.append((reason, detail))

    def rejection(self, row: int) -> dict[str, str]:
        """Return where a rejected row was read, the reason, and the detail if there is one."""
        reason, detail = self._reasons[self._reason[row]]
        about = {"source": self.source(row), "reason": reason}
        return about | {"detail": f"{detail} {self.source(self._match[row])}"} if detail else about

    def is_near(self, one: int, other: int, threshold: float) -> bool:
        """Return whether the Jaccard index of each part of two rows' keys is at least the threshold.

        Each must be near, as one word can change the meaning.
        """
        for part, name in enumerate(PARTS):
            hashes = self.arrays[name]
            is_same = hashes[one] == hashes[other]
            if not is_same and jaccard(self._shingles(one, part), self._shingles(other, part)) < threshold:
                return False
        return True

    def turn_similarity(self, one: tuple[int, int], other: tuple[int, int]) -> float:
        """Return the Jaccard index of two turns, each given by its row and its place: -1 for the intent."""
        return jaccard(*(self._shingles(row, 0 if place < 0 else len(PARTS) + place) for row, place in (one, other)))

    def _read_shingles(self, row: int, part: int) -> frozenset[int]:
        """Return the shingles of a part of a row's key; from len(PARTS) on, of the user's turns in the history."""
        size, end = int(self.arrays["key_size"][row]), int(self._key_ends[row])
        *parts, last = os.pread(self._keys.fileno(), size, end - size).decode().split("\0")
        parts = [*parts, last] if len(parts) == len(PARTS) - 1 else [*parts, last, ""]
        return shingle_set(parts[part] if part < len(PARTS) else earlier_turns(parts[-1])[part - len(PARTS)])
