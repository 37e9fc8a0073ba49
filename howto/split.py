"""Dealing rows into train, validation and test without a leak.

Rows that share an intent or a context (compared without case and punctuation) form a group, and a
group goes to one split as a whole. Which one is read off a hash of the group's key, so that it
depends neither on the order of the rows nor on what other groups there are.
"""

from __future__ import annotations

import hashlib

from howto.cleaning import normal_key
from howto.params.prepare import Prepare
from howto.rows import Row


def deal(rows: list[Row], params: Prepare) -> list[str]:
    """The split of each row: "train", "validation" or "test"."""
    groups = _Groups()
    keys = []
    for row in rows:
        intent = "intent " + normal_key(row.intent)
        keys.append(intent)
        if normal_key(row.context):
            groups.join(intent, "context " + normal_key(row.context))
    return [_split(groups.smallest(key), params) for key in keys]


def _split(key: str, params: Prepare) -> str:
    digest = hashlib.sha256(f"{params.split_seed} {key}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64  # uniform in [0, 1)
    if place < params.test_share:
        return "test"
    return "validation" if place < params.test_share + params.validation_share else "train"


class _Groups:
    """Disjoint sets of keys (union-find); each set is named by its smallest key."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def smallest(self, key: str) -> str:
        path = []
        while (parent := self._parent.get(key, key)) != key:
            path.append(key)
            key = parent
        for passed in path:
            self._parent[passed] = key
        return key

    def join(self, one: str, other: str) -> None:
        low, high = sorted([self.smallest(one), self.smallest(other)])
        if low != high:
            self._parent[high] = low
