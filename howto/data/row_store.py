"""All usable rows: the numbers by which they are compared stand in memory, their text on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from howto.core.schema import intent_of
from howto.data.clean_text import normal_key
from howto.data.minhash import NearIndex, Signatures, jaccard, shingle_set
from howto.data.row_processor import Digest, Numbers

REMEMBERED = 512  # rows, and sets of shingles, that are kept while pairs are compared


class Table:
    """The rows of digests, in the order in which they were added. They are numbered from 0."""

    def __init__(self, file: IO[bytes]) -> None:
        """An empty table; `file` takes the texts, and is open for writing and reading."""
        self._file = file
        self._parts: list[Numbers] = []
        self._paths: list[tuple[int, Path]] = []  # number of the first row after, file
        self._category_numbers: dict[str, int] = {}
        self._categories: list[NDArray[np.uint32]] = []
        self._rows = 0

    def add(self, digest: Digest) -> None:
        """Take in the usable rows of a chunk."""
        self._file.writelines(digest.lines)
        self._rows += len(digest.lines)
        self._parts.append(digest.numbers)
        known = self._category_numbers
        numbers = [known.setdefault(name, len(known)) for name in digest.categories]
        self._categories.append(np.array(numbers, dtype=np.uint32))
        if self._paths and self._paths[-1][1] == digest.path:
            self._paths.pop()
        self._paths.append((self._rows, digest.path))

    def close(self) -> None:
        """Add no more: from now on the rows can be read."""
        self._file.flush()
        self.numbers = _joined(self._parts)
        self.categories = np.concatenate([*self._categories, np.zeros(0, dtype=np.uint32)])
        self.category_names = list(self._category_numbers)
        self._ends = np.cumsum(self.numbers.sizes, dtype=np.int64)
        self._texts = lru_cache(maxsize=REMEMBERED)(self._read_texts)
        self._set = lru_cache(maxsize=REMEMBERED)(self._read_set)

    def __len__(self) -> int:
        """The number of rows."""
        return self._rows

    def lines(self) -> Iterator[bytes]:
        """The rows as JSON, one after the other."""
        self._file.seek(0)
        yield from self._file

    def source(self, row: int) -> str:
        """Where the row stood: file and line."""
        path = next(path for end, path in self._paths if row < end)
        return f"{path}:{self.numbers.lines[row]}"

    def from_files_in(self, folder: Path) -> NDArray[np.bool_]:
        """Which rows stood in a file of this folder."""
        ends = np.array([end for end, _ in self._paths], dtype=np.int64)
        inside = np.array([folder in path.parents for _, path in self._paths], dtype=bool)
        return inside[np.searchsorted(ends, np.arange(len(self)), side="right")]

    def near_rows(self, threshold: float) -> NearIndex:
        """An index of whole rows. Two are near if each of their texts is: one word may turn the meaning of all."""
        signatures = Signatures(self.numbers.row_bands, self.numbers.row_sketches)

        def near(one: int, other: int) -> bool:
            return all(self._jaccard(one, other, text) >= threshold for text in range(3))

        return NearIndex(signatures, threshold, near)

    def near_intents(self, rows: NDArray[np.int64], threshold: float) -> NearIndex:
        """An index of the intents of these rows; it numbers them from 0."""
        signatures = Signatures(self.numbers.intent_bands[rows], self.numbers.intent_sketches[rows])

        def near(one: int, other: int) -> bool:
            return self._jaccard(int(rows[one]), int(rows[other]), 0) >= threshold

        return NearIndex(signatures, threshold, near)

    def _jaccard(self, one: int, other: int, text: int) -> float:
        """How near the intents (text 0), contexts (1) or responses (2) of two rows are."""
        hashes = (self.numbers.intents, self.numbers.contexts, self.numbers.rows)[text]  # rows: those of all three
        if hashes[one] == hashes[other]:
            return 1.0
        return jaccard(self._set(one, text), self._set(other, text))

    def _read_set(self, row: int, text: int) -> frozenset[int]:
        return shingle_set(normal_key(self._texts(row)[text]))

    def _read_texts(self, row: int) -> tuple[str, str, str]:
        """Intent, context and response."""
        size = int(self.numbers.sizes[row])
        line = json.loads(os.pread(self._file.fileno(), size, int(self._ends[row]) - size))
        context = line["context"]
        return intent_of(line["input"], context), context, line["output"]


def _joined(parts: list[Numbers]) -> Numbers:
    """The parts one after the other. They are emptied column by column, so that no two copies stand in memory."""
    columns: dict[str, Any] = {}
    for column in fields(Numbers):
        arrays = [getattr(part, column.name) for part in parts]
        for part in parts:
            setattr(part, column.name, None)
        columns[column.name] = np.concatenate(arrays)
    parts.clear()
    return Numbers(**columns)
