"""The groups of rows behind slices.csv and the report."""

import math

import numpy as np
import pytest

from howto.evaluation.plots import group_rows, slice_table
from tests.support.answers import CONFIG, row


def test_each_slice_has_every_row_in_one_of_its_groups() -> None:
    rows = [row(number, category=category) for number, category in enumerate("baa")]
    rows.append(row(3, "1. Go home.\n2. Sleep.", context="A text."))
    found = group_rows(rows, np.array([24, 25, 200, 6]))
    named = {(of, name): members.nonzero()[0].tolist() for of, name, members in found}
    assert named["category", "a"] == [1, 2] and named["category", "c"] == [3]
    assert named["reference length", "1 to 24 words"] == [0, 3]
    assert named["reference length", "25 to 74 words"] == [1]
    assert named["reference length", "150 words and more"] == [2]
    assert ("reference length", "75 to 149 words") not in named
    assert named["context", "with a context"] == [3] == named["reference", "numbered steps"]
    assert not any(of == "source" for of, _ in named)
    for of in ("category", "reference length", "context", "reference"):
        assert sorted(n for (name, _), members in named.items() if name == of for n in members) == [0, 1, 2, 3]


def test_rows_are_grouped_by_source_if_one_has_a_source() -> None:
    rows = [row(0, source="tickets"), row(1, source="faq"), row(2), row(3, source="faq")]
    found = group_rows(rows, np.array([1] * 4))
    named = {name: members.nonzero()[0].tolist() for of, name, members in found if of == "source"}
    assert named == {"faq": [1, 3], "none": [2], "tickets": [0]}


def test_a_group_of_ten_rows_has_an_interval_and_one_of_nine_has_none() -> None:
    base, adapter = np.linspace(0, 0.4, 19), np.linspace(0.5, 0.7, 19)
    first = np.arange(19) < 10
    table = slice_table([("category", "many", first), ("category", "few", ~first)], base, adapter, CONFIG)
    many, few = table.iloc[0], table.iloc[1]
    assert (many["rows"], many["base"]) == (10, pytest.approx(base[:10].mean(), abs=1e-6))
    assert many["delta_low"] < many["delta"] < many["delta_high"]
    assert few["rows"] == 9 and few["delta"] > 0 and math.isnan(few["delta_low"]) and math.isnan(few["base_high"])
