"""`howto compare` pairs the rows that two versions share, and reports a difference only if the rows show it."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pytest

from howto.core.errors import UserError
from howto.core.schema import Row
from howto.tools.compare import Comparison, compare_versions, differing, params_in_force
from howto.tools.versions import Version
from tests.support.answers import CONFIG, prediction, row


def version(name: str, rows: list[Row], answers: Sequence[Sequence[str]], base: str = "x") -> Version:
    """A version with these answers, [rows][seeds]."""
    adapter = [[prediction(n, text, seed) for seed, text in enumerate(texts)] for n, texts in enumerate(answers)]
    bases = [[one.model_copy(update={"text": base}) for one in of_row] for of_row in adapter]
    return Version(name, None, rows, {"base": bases, "adapter": adapter}, {"profile": "p"}, {}, None)


def compared(old: Iterable[int], new: Iterable[int]) -> Comparison:
    """Versions whose answers score so many tenths: they have so many of the reference's ten words, and ten words."""
    letters = "abcdefghij"
    answers = [[[" ".join(letters[:n].ljust(10, "x"))] for n in side] for side in (old, new)]
    rows = [row(n, " ".join(letters)) for n in range(len(answers[0]))]
    return compare_versions(version("old", rows, answers[0]), version("new", rows, answers[1]), CONFIG)


def test_a_case_by_hand() -> None:
    rows = [row(0, "a b c d"), row(1, "a b c d"), row(2, "1. Go.\n2. Stop.")]
    old = version("old", rows, [["a b c d", "x"], ["", ""], ["go stop", "go stop"]])
    new = version("new", rows, [["a b c d"], ["a b"], ["1. Go.\n2. Stop."]], base="y")
    found = compare_versions(old, new, CONFIG)
    # F of ROUGE-L: "a b c d" 1; "a b" precision 1, recall 1/2: 2/3; "go stop" of "1 go 2 stop": 2/3. Seeds: the mean.
    expected = np.array([(1 / 2, 1), (0, 2 / 3), (2 / 3, 1)])
    scores = [(result["old_rougeL"], result["new_rougeL"]) for result in found.results]
    assert np.array(scores) == pytest.approx(expected, abs=1e-6)
    assert found.delta["rougeL"] == pytest.approx((expected[:, 1] - expected[:, 0]).mean(), abs=1e-6)
    assert [found.delta[name] for name in ("wins", "ties", "losses")] == [3, 0, 0]
    assert found.delta["p_value"] == pytest.approx(1 / 4, abs=0.08)  # of 8 ways to set 3 signs, 2 have as large a sum
    assert (found.old.seeds, found.new.seeds) == (2, 1)
    assert [side.metrics["well_numbered"] for side in (found.old, found.new)] == [0, 1]
    assert [side.metrics["ended_by_eos"] for side in (found.old, found.new)] == pytest.approx([4 / 6, 1], abs=1e-6)
    assert found.changed_base_answers == 3


def test_both_versions_are_scored_with_this_folders_tokenizer_whatever_they_were_scored_with() -> None:
    rows = [row(0, "1. 打开门\n2. 关上窗")]
    old, new = version("old", rows, [["1. 买菜\n2. 洗手"]]), version("new", rows, [["1. 打开门\n2. 关窗"]])
    old.params["evaluate"] = {"tokenizer": "rouge_score"}
    new.params["evaluate"] = {"tokenizer": "unicode"}
    found = compare_versions(old, new, CONFIG.model_copy(update={"tokenizer": "unicode"}))
    # In common are 1 and 2: 2 * 2 / (8 + 6). Then all but 上: 2 * 7 / (8 + 7).
    scores = [(result["old_rougeL"], result["new_rougeL"]) for result in found.results]
    assert np.array(scores) == pytest.approx(np.array([(4 / 14, 14 / 15)]), abs=1e-6)
    assert found.params == {} and found.warnings == []
    with pytest.raises(UserError, match=r"evaluate\.tokenizer: rouge_score .*unicode"):
        compare_versions(old, new, CONFIG)


def test_rows_are_paired_by_id_if_their_texts_are_the_same() -> None:
    old = version("old", [row(n, "a b c d") for n in range(3)], [["a"], ["a b"], ["a b c"]])
    rows = [row(3, "a b c d"), row(2, "a b"), row(1, "a b c d", intent="do that"), row(0, "a b c d")]
    found = compare_versions(old, version("new", rows, [["d"], ["c"], ["b"], ["a b"]]), CONFIG)
    assert [(result["id"], result["old"], result["new"]) for result in found.results] == [("0", "a", "a b")]
    assert (found.rows, found.old.rows_left_out, found.new.rows_left_out) == (1, 2, 3)
    with pytest.raises(UserError, match="no test row is in both"):
        compare_versions(old, version("new", rows[:3], [["d"], ["c"], ["b"]]), CONFIG)


def test_a_true_difference_is_reported_with_its_direction_and_one_row_shows_none() -> None:
    chance = np.random.default_rng(0)
    worse = chance.integers(1, 9, 200)
    better = np.clip(worse + chance.integers(-2, 4, 200), 0, 10)  # half a tenth better, and noise
    found = compared(worse, better)
    assert re.match(r"new is better than old: \+0\.0\d+ ROUGE-L, 95% interval \[\+0\.0", found.conclusion)
    assert compared(better, worse).conclusion.startswith("new is worse than old: -0.0")
    assert "no clear difference between new and old: +1.0000" in compared([0], [10]).conclusion
    half_width = (found.delta["rougeL_high"] - found.delta["rougeL_low"]) / 2
    assert found.detectable == pytest.approx(half_width * (1.96 + 0.8416) / 1.96, rel=1e-3)  # 80 % power


def test_differing_params_are_those_behind_the_answers_under_any_profile() -> None:
    old = {"profile": "a", "train": {"lora": {"r": 8}}, "profiles": {"a": {"rate": 1}, "b": {"rate": 5}}}
    new = {"profile": "b", "train": {"lora": {"r": 8, "x": None}}, "profiles": {"a": {"rate": 9}, "b": {"rate": 2}}}
    found = differing(params_in_force(old), params_in_force(new | {"evaluate": {"seed": 1}}))
    assert found == {"profile": ("a", "b"), "profiles.<profile>.rate": (1, 2)}
