"""Which rows repeat one that came before."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from howto.data.minhash import U64, NearIndex

Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]


def exact_duplicates(keys: U64) -> Numbers:
    """For each row the first row with the same key, or -1 if that is itself."""
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    found = first[number].astype(np.int64)
    found[first] = -1
    return found


def near_duplicates(
    index: NearIndex, rows: Mask, keep: Mask, watch: Callable[[Iterable[int]], Iterable[int]]
) -> Numbers:
    """For each of `rows` the one before it that it is near to, or -1 if there is none or it is one to `keep`.

    A row is compared with those alone that are no duplicates themselves, so that a chain of rows, each
    near to the next, does not shrink to its first. `watch` sees the numbers that are gone through.
    """
    found = np.full(len(rows), -1, dtype=np.int64)
    for row in watch(np.flatnonzero(rows & index.crowded).tolist()):
        other = None if keep[row] else index.find(row)
        if other is None:
            index.add(row)
        else:
            found[row] = other
    return found
