"""Split rows into train, validation and test without a leak.

A row's split depends only on a hash of its intent's normal key. So the order of the rows does not matter, later rows
move no earlier row, and rows with the same intent go together. A row of train would leak if it shares its context, or a
near intent, with a row of validation or test: it is left out. So is such a row of validation. Test rows always stay.

To split groups of such rows would keep every row. But a new row that joins two groups would move one of them, and then
a model is scored on rows that an earlier one was trained on.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from howto.core.errors import UserError
from howto.data.arrays import U64, Codes, Mask, RowNumbers
from howto.data.config import Split
from howto.data.minhash import NearIndex
from howto.data.row_store import RowStore

TRAIN, VALIDATION, TEST, NONE = 0, 1, 2, 3
NAMES = ("train", "validation", "test")


def split_rows(store: RowStore, params: Split) -> Codes:
    """Return the split of each row. The rows that are in none (NONE) are rejected, among them those that would leak."""
    arrays, threshold = store.arrays, params.near_intents
    codes = np.full(len(store), NONE, dtype=np.uint8)
    codes[store.used] = deal(arrays["place"][store.used], arrays["given_test"][store.used], params)
    store.reject("not_dealt", "", np.where(codes == NONE, 0, -1))
    rows = np.flatnonzero(store.used)

    def index_intents(places: RowNumbers) -> NearIndex:
        chosen = rows[places].tolist()
        bands, sketches = arrays["intent_bands"][chosen], arrays["intent_sketches"][chosen]
        near = threshold or 1.0
        return NearIndex(bands, sketches, near, lambda a, b: store.is_near(chosen[a], chosen[b], near, texts=(0,)))

    intents, contexts = arrays["intent"][rows], arrays["context"][rows]
    for what, found in find_leaks(codes[rows], intents, contexts, index_intents if threshold else None).items():
        matches = np.full(len(store), -1, dtype=np.int64)
        matches[rows] = np.where(found >= 0, rows[found], -1)
        store.reject("matches_test", f"has the {what} of", np.where(codes[matches] == TEST, matches, -1))
        store.reject("matches_validation", f"has the {what} of", matches)
    codes[~store.used] = NONE
    return codes


def deal(places: NDArray[np.float64], given_test: Mask, params: Split) -> Codes:
    """Return the split of each row by its place in [0, 1): the lowest are test, then validation; the highest are train.

    `given_test` marks the rows of a separate test file; if there are any, they alone are the test. A share takes the
    rows whose place is in a part of [0, 1) of that length. A number of rows takes that many, and more only where rows
    share an intent; added rows can then push old ones out of test and validation, never into them. A row that no split
    takes is NONE.

    Raise UserError if the numbers in `params` add up to more rows than there are.
    """
    codes = np.full(len(places), NONE, dtype=np.uint8)
    codes[given_test] = TEST
    dealt = np.sort(places[~given_test])
    test = 0 if given_test.any() else params.test
    numbers = [part for part in (test, params.validation, params.train) if isinstance(part, int)]
    if sum(numbers) > len(dealt):
        raise UserError(
            f"params.yaml: prepare.split: expected {sum(numbers)} rows or more, got {len(dealt)}. Lower them."
        )
    end_of_test = _end(dealt, 0.0, test)
    end_of_validation = _end(dealt, end_of_test, params.validation)
    start_of_train = end_of_validation
    if params.train != "rest":
        start = 1 - params.train if isinstance(params.train, float) else float(dealt[-params.train])
        start_of_train = max(start_of_train, start)
    codes[~given_test & (places >= start_of_train)] = TRAIN
    codes[~given_test & (places < end_of_validation)] = VALIDATION
    codes[~given_test & (places < end_of_test)] = TEST
    return codes


def _end(places: NDArray[np.float64], start: float, part: float | int) -> float:
    """Return where the part that begins at `start` ends; `places` are sorted."""
    if isinstance(part, float):
        return start + part
    last = places[np.searchsorted(places, start) :][:part]
    return float(np.nextafter(last[-1], 2)) if len(last) else start


def find_leaks(
    codes: Codes, intents: U64, contexts: U64, index_intents: Callable[[RowNumbers], NearIndex] | None
) -> dict[str, RowNumbers]:
    """Find the rows of validation that match one of test, and those of train that match test or the rest of validation.

    Args:
        codes: the split of each row.
        intents: hashes of the rows' intents.
        contexts: hashes of their contexts; 0 where there is none.
        index_intents: returns an index of the intents of rows that all differ in it; None if near intents are no leak.

    Returns:
        By what two rows share ("intent", "context" or "near intent"): for each row one that it would leak to, or -1.
    """
    _, first, number = np.unique(intents, return_index=True, return_inverse=True)  # `number` is the intent of each row
    index = index_intents(first) if index_intents else None
    found = {what: np.full(len(codes), -1, dtype=np.int64) for what in ("intent", "context", "near intent")}
    safe = np.zeros(len(codes), dtype=bool)
    for code in (TEST, VALIDATION, TRAIN):
        rows = codes == code
        for what, keys in (("intent", intents), ("context", contexts)):
            found[what][rows] = _same_key(keys, safe)[rows]
            rows &= found[what] < 0
        if index:
            candidates = [intent for intent in np.unique(number[rows]).tolist() if index.has_candidates[intent]]
            near = np.full(len(first), -1, dtype=np.int64)
            for intent in candidates:
                if (other := index.find(intent)) is not None:
                    near[intent] = first[other]
            found["near intent"][rows] = near[number][rows]
            rows &= near[number] < 0
            for intent in candidates:
                if near[intent] < 0:
                    index.add(intent)
        safe |= rows
    return found


def _same_key(keys: U64, among: Mask) -> RowNumbers:
    """Return for each row the first row `among` the marked ones with the same key (other than 0), or -1."""
    marked, rows = np.unique(keys[among], return_index=True)
    found = np.full(len(keys), -1, dtype=np.int64)
    if len(marked):
        place = np.minimum(np.searchsorted(marked, keys), len(marked) - 1)
        same = (marked[place] == keys) & (keys != 0)
        found[same] = np.flatnonzero(among)[rows][place[same]]
    return found
