"""Reject the rows that repeat an earlier one, exactly or nearly."""

import numpy as np
from tqdm import tqdm

from howto.data.arrays import RowNumbers
from howto.data.config import Duplicates
from howto.data.minhash import NearIndex
from howto.data.row_store import RowStore


def reject_duplicates(store: RowStore, params: Duplicates) -> None:
    """Reject the rows that repeat an earlier one.

    A repetition of a row of a given test has the reason "matches_test". Within a given test, near-duplicates stay.
    """
    arrays = store.arrays
    given_test = arrays["given_test"]

    def reject(reason: str, detail: str, found: RowNumbers) -> None:
        store.reject("matches_test", detail, np.where(~given_test & given_test[found], found, -1))
        store.reject(reason, detail, found)

    if params.exact:
        _, first, number = np.unique(arrays["row"], return_index=True, return_inverse=True)
        found = first[number]
        found[first] = -1
        reject("duplicate", "repeats", found)
    if (near := params.near) is not None:
        found = np.full(len(store), -1, dtype=np.int64)
        index = NearIndex(arrays["row_bands"], arrays["row_sketches"], near, lambda a, b: store.is_near(a, b, near))
        candidates = np.flatnonzero(store.used & index.has_candidates).tolist()
        for row in tqdm(candidates, desc="near-duplicates", unit="row", disable=None):
            other = None if given_test[row] else index.find(row)
            if other is not None:
                found[row] = other
            else:  # only rows that are kept: a chain of rows, each near to the next, must not shrink to its first
                index.add(row)
        reject("near_duplicate", "is near to", found)
