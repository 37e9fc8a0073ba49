"""Near-duplicates by MinHash (Broder 1997) and locality-sensitive hashing, the signatures by `rensa`.

A text is the set of its runs of five characters (shingles); two texts are as near as the Jaccard index of their sets.
Signatures find the pairs that may be near, the sets themselves then say whether they are: so a threshold means what
it says, and only the finding is a matter of chance (99 % of the pairs that lie on the threshold, more above it).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

SHINGLE = 5  # characters
PERMUTATIONS = 64  # all of them, one byte of each, are the sketch that shows whether a pair is far from near
SEED = 1
RECALL = 0.99
CROWD = 1024  # rows that are looked at, about; only thousands of rows of one pattern exceed it
CLOSEST = 16  # candidates whose sets are compared

U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
U8 = NDArray[np.uint8]

_MULTIPLIER, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_PAD = "\0" * (SHINGLE - 1)


@dataclass(frozen=True)
class Signatures:
    """What is kept of `rows` texts: `bands` [rows, number of bands], and `sketches` [rows, PERMUTATIONS]."""

    bands: U32
    sketches: U8


def shingles(texts: Sequence[str]) -> tuple[U64, U64]:
    """The hashes of all shingles [sum of the texts' lengths] and where each text's begin [texts + 1].

    There is one shingle for each character: the last ones reach beyond the end of the text.
    """
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    padded = "".join([text + _PAD for text in texts])
    points = np.frombuffer(padded.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    count = max(len(points) - SHINGLE + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(SHINGLE):
        hashes *= _MULTIPLIER
        hashes += points[place : count + place]
    hashes ^= hashes >> np.uint64(29)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(32)
    begins_a_shingle = np.ones(count, dtype=bool)
    ends = np.cumsum(lengths + SHINGLE - 1) - (SHINGLE - 1)
    for place in range(SHINGLE - 1):
        beyond = ends + place
        begins_a_shingle[beyond[beyond < count]] = False
    return hashes[begins_a_shingle], offsets


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, rows in a band): the strictest banding that finds RECALL of the pairs at the threshold.

    A pair of similarity s shares a band with probability 1 - (1 - s^r)^b (Leskovec et al., Mining of
    Massive Datasets, 3.4.2).
    """
    for r in range(PERMUTATIONS, 0, -1):
        b = PERMUTATIONS // r
        if 1 - (1 - threshold**r) ** b >= RECALL:
            return b, r
    return PERMUTATIONS, 1


def sign(hashes: U64, offsets: U64, threshold: float) -> Signatures:
    """The signatures of texts whose shingles are `hashes[offsets[i] : offsets[i + 1]]`."""
    rows = len(offsets) - 1
    b, r = bands_for(threshold)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, PERMUTATIONS, SEED)
    digests = np.array(matrix.to_rows(), dtype=np.uint32).reshape(rows, PERMUTATIONS)
    bands = np.zeros((rows, b), dtype=np.uint64)
    for place in range(r):
        bands *= _MULTIPLIER
        bands += digests[:, place : b * r : r]
    bands ^= bands >> np.uint64(29)
    bands *= _MIX
    return Signatures((bands >> np.uint64(32)).astype(np.uint32), (digests & 0xFF).astype(np.uint8))


def unsigned(rows: int) -> Signatures:
    """Signatures for rows that nobody will look for."""
    return Signatures(np.zeros((rows, 0), dtype=np.uint32), np.zeros((rows, 0), dtype=np.uint8))


def shingle_set(text: str) -> frozenset[int]:
    """The shingles of one text, as numbers of their own: faster than `shingles` where texts come one by one."""
    points = np.frombuffer((text + _PAD).encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    hashes = points[: len(text)]
    for place in range(1, SHINGLE):
        hashes = hashes * _MULTIPLIER + points[place : len(text) + place]
    return frozenset(hashes.tolist())


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """The Jaccard index of two sets: 1 if both are empty."""
    both = len(one & other)
    either = len(one) + len(other) - both
    return both / either if either else 1.0


class NearIndex:
    """Rows that were added to it, found again by rows that are near to them.

    `signatures` are those of all rows that will ever be asked of; rows are their numbers there. `near`
    says whether two rows are near indeed.
    """

    def __init__(self, signatures: Signatures, threshold: float, near: Callable[[int, int], bool]) -> None:
        self._bands, self._sketches = signatures.bands, signatures.sketches
        self._near = near
        # A sketch's estimate has a standard deviation of at most 1 / (2 sqrt(PERMUTATIONS)) = 0.06: three of them.
        self._plausible = (threshold - 3 / (2 * PERMUTATIONS**0.5)) * PERMUTATIONS
        self._shared = np.column_stack([_occurs_twice(column) for column in self._bands.T])
        self._buckets: dict[int, list[int]] = defaultdict(list)
        self.crowded: NDArray[np.bool_] = np.logical_or.reduce(self._shared, axis=1)

    def add(self, row: int) -> None:
        """Make the row one that is found."""
        for bucket in self._buckets_of(row):
            members = self._buckets[bucket]
            if len(members) < CROWD:
                members.append(row)

    def find(self, row: int) -> int | None:
        """A row that was added and that this one is near to; None if there is none."""
        buckets = [self._buckets[bucket] for bucket in self._buckets_of(row) if bucket in self._buckets]
        found: set[int] = set()
        for members in sorted(buckets, key=len):  # what a near row shares with few others tells most
            if len(found) < CROWD:
                found.update(members)
        if not found:
            return None
        candidates = sorted(found)
        alike = (self._sketches[candidates] == self._sketches[row]).sum(axis=1).tolist()
        likely = [(-count, other) for count, other in zip(alike, candidates, strict=True) if count >= self._plausible]
        likely.sort()
        return next((other for _, other in likely[:CLOSEST] if other != row and self._near(row, other)), None)

    def _buckets_of(self, row: int) -> list[int]:
        """The row's buckets, without those in which it is alone."""
        hashes, shared = self._bands[row].tolist(), self._shared[row].tolist()
        return [(band << 32) + hashes[band] for band, is_shared in enumerate(shared) if is_shared]


def _occurs_twice(values: U32) -> NDArray[np.bool_]:
    """Which values stand there more than once."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    same = ordered[1:] == ordered[:-1]
    found = np.zeros(len(values), dtype=bool)
    found[order[1:]] = same
    found[order[:-1]] |= same
    return found
