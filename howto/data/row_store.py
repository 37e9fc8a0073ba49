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
from howto.data.row_processor import ProcessedChunk

CACHED = 512  # sets of shingles, while pairs are compared


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
        self._parts.append({"file": file, **chunk.arrays})
        self.categories += map(sys.intern, chunk.categories)  # equal names share one string

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
        """Yield the rows as JSON lines."""
        self._lines.seek(0)
        yield from self._lines

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

    def is_near(self, one: int, other: int, threshold: float, texts: tuple[int, ...] = (0, 1, 2)) -> bool:
        """Return whether the Jaccard index of each text of two rows is at least the threshold.

        The texts are intent (0), context (1) and response (2). Each must be near, as one word can change the meaning.
        """
        for text in texts:
            hashes = self.arrays[("intent", "context", "row")[text]]
            is_same = hashes[one] == hashes[other]
            if not is_same and jaccard(self._shingles(one, text), self._shingles(other, text)) < threshold:
                return False
        return True

    def _read_shingles(self, row: int, text: int) -> frozenset[int]:
        size, end = int(self.arrays["key_size"][row]), int(self._key_ends[row])
        return shingle_set(os.pread(self._keys.fileno(), size, end - size).decode().split("\0")[text])
