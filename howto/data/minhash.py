"""Find near-duplicates with MinHash (Broder 1997) and locality-sensitive hashing; `rensa` computes the hashes.

A text is the set of its runs of five characters (shingles). The similarity of two texts is the Jaccard index of their
sets. Signatures find the candidate pairs; the sets then decide. So a threshold is exact. Only the search is a matter of
chance: it finds 99 % of the pairs at the threshold, and more above it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from rensa import RMinHash

from howto.data.arrays import U8, U32, U64, Mask

SHINGLE = 5  # characters
PERMUTATIONS = 64  # one byte of each is kept as the sketch, which shows that a pair is far below the threshold
SEED = 1
RECALL = 0.99
CANDIDATES = 1024  # about so many are looked at; only thousands of rows with one pattern exceed it
COMPARED = 16  # candidates whose sets are compared

_MULTIPLIER, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)


def shingles(texts: Sequence[str]) -> tuple[U64, U64]:
    """Return the hashes of all shingles [sum of the texts' lengths], and where each text's begin [texts + 1].

    There is one shingle for each character: the last ones reach beyond the end of the text.
    """
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint64)
    padded = "".join([text + "\0" * (SHINGLE - 1) for text in texts])
    points = np.frombuffer(padded.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    count = max(len(points) - SHINGLE + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(SHINGLE):
        hashes *= _MULTIPLIER
        hashes += points[place : count + place]
    hashes ^= hashes >> np.uint64(29)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(32)
    sizes = np.column_stack([lengths, np.full(len(texts), SHINGLE - 1)]).ravel()  # of text, padding, text, ...
    return hashes[np.repeat(np.tile([True, False], len(texts)), sizes)[:count]], offsets


def bands_for(threshold: float) -> tuple[int, int]:
    """Return (bands, hashes in a band): the strictest banding that finds RECALL of the pairs at the threshold.

    A pair of similarity s shares a band with probability 1 - (1 - s^r)^b (Leskovec et al., Mining of Massive Datasets,
    3.4.2).
    """
    for r in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - threshold**r) ** (PERMUTATIONS // r) >= RECALL:
            return PERMUTATIONS // r, r
    return PERMUTATIONS, 1


def sign(hashes: U64, offsets: U64, threshold: float) -> tuple[U32, U8]:
    """Return bands [texts, bands] and sketches [texts, PERMUTATIONS] of what `shingles` returned."""
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
    return (bands >> np.uint64(32)).astype(np.uint32), (digests & 0xFF).astype(np.uint8)


def shingle_set(text: str) -> frozenset[int]:
    """Return the hashes of the shingles of one text."""
    return frozenset(shingles([text])[0].tolist())


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Return the Jaccard index of two sets: 1 if both are empty."""
    both = len(one & other)
    either = len(one) + len(other) - both
    return both / either if either else 1.0


class NearIndex:
    """Rows that were added, found again by rows that are near-duplicates of them.

    `bands` and `sketches` are the signatures of all rows that will be added or looked for; `is_near` compares the texts
    of two rows.
    """

    def __init__(self, bands: U32, sketches: U8, threshold: float, is_near: Callable[[int, int], bool]) -> None:
        self._bands, self._sketches = bands, sketches
        self._is_near = is_near
        # The standard deviation of a sketch's estimate is at most 1 / (2 sqrt(PERMUTATIONS)) = 0.06. Allow three.
        self._plausible = (threshold - 3 / (2 * PERMUTATIONS**0.5)) * PERMUTATIONS
        self._shared = np.column_stack([_occurs_twice(column) for column in bands.T])
        self._buckets: dict[int, list[int]] = defaultdict(list)
        self.has_candidates: Mask = np.logical_or.reduce(self._shared, axis=1)

    def add(self, row: int) -> None:
        """Let later calls of `find` return the row."""
        for bucket in self._buckets_of(row):
            members = self._buckets[bucket]
            if len(members) < CANDIDATES:
                members.append(row)

    def find(self, row: int) -> int | None:
        """Return an added row that is a near-duplicate of this one, or None."""
        buckets = [self._buckets[bucket] for bucket in self._buckets_of(row) if bucket in self._buckets]
        found: set[int] = set()
        for members in sorted(buckets, key=len):  # the fewer rows share a band, the more it says
            if len(found) < CANDIDATES:
                found.update(members)
        if not found:
            return None
        candidates = sorted(found)
        alike = (self._sketches[candidates] == self._sketches[row]).sum(axis=1).tolist()
        likely = [(-count, other) for count, other in zip(alike, candidates, strict=True) if count >= self._plausible]
        likely.sort()
        return next((other for _, other in likely[:COMPARED] if other != row and self._is_near(row, other)), None)

    def _buckets_of(self, row: int) -> list[int]:
        """Return the row's buckets, without those that no other row shares."""
        hashes, shared = self._bands[row].tolist(), self._shared[row].tolist()
        return [(band << 32) + hashes[band] for band, is_shared in enumerate(shared) if is_shared]


def _occurs_twice(values: U32) -> Mask:
    """Return which values occur more than once."""
    _, number, count = np.unique(values, return_inverse=True, return_counts=True)
    return count[number] > 1
