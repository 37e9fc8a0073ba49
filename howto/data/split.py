"""Split rows into train, validation and test without a leak.

A row's split depends only on a hash of its intent's normal key; with a history, on that of the first turn of the user.
So the order of the rows does not matter, later rows move no earlier row, rows with the same intent go together, and so
do those that are made of one conversation. A row of train would leak if it shares its context, or a near turn of the
user, be it the intent or an earlier one, with a row of validation or test: it is left out. So is such a row of
validation. Test rows always stay.

To split groups of such rows would keep every row. But a new row that joins two groups would move one of them, and then
a model is scored on rows that an earlier one was trained on.
"""

from collections.abc import Callable
from typing import Any

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
    place = np.full(len(store), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    earlier = np.flatnonzero(store.used[arrays["turn_row"]])  # the turns in the histories of used rows
    owner = np.concatenate([np.arange(len(rows)), place[arrays["turn_row"][earlier]]])

    def of_turns(turns: RowNumbers, intents: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
        """Return an entry for each turn: of `intents`, which has one for each row, or of `others`."""
        is_intent = turns < len(rows)
        picked = np.empty((len(turns), *intents.shape[1:]), dtype=intents.dtype)
        picked[is_intent] = intents[rows[turns[is_intent]]]
        picked[~is_intent] = others[earlier[turns[~is_intent] - len(rows)]]
        return picked

    def index_turns(turns: RowNumbers) -> NearIndex:
        bands, sketches = (
            of_turns(turns, arrays[f"intent_{of}"], arrays[f"turn_{of}"]) for of in ("bands", "sketches")
        )
        row = of_turns(turns, np.arange(len(store)), arrays["turn_row"]).tolist()
        at = of_turns(turns, np.full(len(store), -1), arrays["turn_place"]).tolist()
        near = threshold or 1.0
        return NearIndex(
            bands, sketches, near, lambda a, b: store.turn_similarity((row[a], at[a]), (row[b], at[b])) >= near
        )

    turns, contexts = np.concatenate([arrays["intent"][rows], arrays["turn"][earlier]]), arrays["context"][rows]
    leaks = find_leaks(codes[rows], turns, owner, contexts, index_turns if threshold else None)
    for what, found in leaks.items():
        detail = "shares a turn with" if what == "turn" else f"has the {what} of"
        matches = np.full(len(store), -1, dtype=np.int64)
        matches[rows] = np.where(found >= 0, rows[found], -1)
        store.reject("matches_test", detail, np.where(codes[matches] == TEST, matches, -1))
        store.reject("matches_validation", detail, matches)
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
    codes: Codes,
    turns: U64,
    owner: RowNumbers,
    contexts: U64,
    index_turns: Callable[[RowNumbers], NearIndex] | None,
) -> dict[str, RowNumbers]:
    """Find the rows of validation that match one of test, and those of train that match test or the rest of validation.

    Args:
        codes: the split of each row.
        turns: hashes of what users say: first the intent of each row, then the turns in histories.
        owner: the row of each turn.
        contexts: hashes of the rows' contexts; 0 where there is none.
        index_turns: returns an index of turns that all differ in it; None if near turns are no leak.

    Returns:
        By what two rows share ("intent", "context", "turn" or "near intent"): for each row one that it would leak to,
        or -1.
    """
    _, first, number = np.unique(turns, return_index=True, return_inverse=True)  # `number` is the text of each turn
    index = index_turns(first) if index_turns else None
    found = {what: np.full(len(codes), -1, dtype=np.int64) for what in ("intent", "context", "turn", "near intent")}
    safe = np.zeros(len(codes), dtype=bool)
    holder = np.full(len(first), -1, dtype=np.int64)  # the first safe row with each text

    def by_row(rows_of_turns: RowNumbers) -> RowNumbers:
        largest = np.full(len(codes), -1, dtype=np.int64)
        np.maximum.at(largest, owner, rows_of_turns)
        return largest

    for code in (TEST, VALIDATION, TRAIN):
        rows = codes == code
        for what, keys in (("intent", turns[: len(codes)]), ("context", contexts)):
            found[what][rows] = _same_key(keys, safe)[rows]
            rows &= found[what] < 0
        if len(turns) > len(codes):
            found["turn"][rows] = by_row(np.where(turns != 0, holder[number], -1))[rows]
            rows &= found["turn"] < 0
        if index:
            candidates = [text for text in np.unique(number[rows[owner]]).tolist() if index.has_candidates[text]]
            near = np.full(len(first), -1, dtype=np.int64)
            for text in candidates:
                if (other := index.find(text)) is not None:
                    near[text] = holder[other]
            found["near intent"][rows] = by_row(near[number])[rows]
            rows &= found["near intent"] < 0
            kept = np.zeros(len(first), dtype=bool)
            kept[number[rows[owner]]] = True
            for text in candidates:
                if kept[text]:
                    index.add(text)
        safe |= rows
        new = np.flatnonzero(rows[owner] & (holder[number] < 0))[::-1]  # of equal texts, the first is written last
        holder[number[new]] = owner[new]
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
