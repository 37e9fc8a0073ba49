"""`howto compare` pairs the rows that all versions share, and reports a difference only if rows and runs show it."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from howto.core.errors import UserError
from howto.core.schema import Message, Row
from howto.evaluation.significance import over_rows_and_seeds
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
    return compare_versions([version("old", rows, answers[0])], [version("new", rows, answers[1])], CONFIG)


def test_a_case_by_hand() -> None:
    rows = [row(0, "a b c d"), row(1, "a b c d"), row(2, "1. Go.\n2. Stop.")]
    old = version("old", rows, [["a b c d", "x"], ["", ""], ["go stop", "go stop"]])
    new = version("new", rows, [["a b c d"], ["a b"], ["1. Go.\n2. Stop."]], base="y")
    found = compare_versions([old], [new], CONFIG)
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
    found = compare_versions([old], [new], CONFIG.model_copy(update={"tokenizer": "unicode"}))
    # In common are 1 and 2: 2 * 2 / (8 + 6). Then all but 上: 2 * 7 / (8 + 7).
    scores = [(result["old_rougeL"], result["new_rougeL"]) for result in found.results]
    assert np.array(scores) == pytest.approx(np.array([(4 / 14, 14 / 15)]), abs=1e-6)
    assert found.params == {} and found.warnings == []
    with pytest.raises(UserError, match=r"evaluate\.tokenizer: rouge_score .*unicode"):
        compare_versions([old], [new], CONFIG)


def test_rows_are_paired_by_id_if_their_texts_are_the_same() -> None:
    old = version("old", [row(n, "a b c d") for n in range(3)], [["a"], ["a b"], ["a b c"]])
    rows = [row(3, "a b c d"), row(2, "a b"), row(1, "a b c d", intent="do that"), row(0, "a b c d")]
    found = compare_versions([old], [version("new", rows, [["d"], ["c"], ["b"], ["a b"]])], CONFIG)
    assert [(result["id"], result["old"], result["new"]) for result in found.results] == [("0", "a", "a b")]
    assert [found.rows, *(run.rows_left_out for side in (found.old, found.new) for run in side.runs)] == [1, 2, 3]
    with pytest.raises(UserError, match="no test row is in all versions"):
        compare_versions([old], [version("new", rows[:3], [["d"], ["c"], ["b"]])], CONFIG)


def test_rows_with_another_history_or_system_message_are_not_paired_but_the_projects_instruction_may_differ() -> None:
    turns, answers = (Message(role="user", content="May I?"), Message(role="assistant", content="Yes.")), [["a"]] * 4
    old_rows = [row(0), row(1, history=turns), row(2, instruction="Be brief."), row(3, history=turns)]
    new_rows = [row(0), row(1), row(2, instruction="Be kind."), row(3, history=turns)]
    new_rows = [one if one.id == "2" else one.model_copy(update={"instruction": "other"}) for one in new_rows]
    old, new = version("old", old_rows, answers), version("new", new_rows, answers)
    old.params["prepare"], new.params["prepare"] = {"instruction": "i"}, {"instruction": "other"}
    found = compare_versions([old], [new], CONFIG)
    assert [result["id"] for result in found.results] == ["0", "3"]
    assert found.params == {"prepare.instruction": ("i", "other")}


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


LETTERS = "abcdefghij"


def runs(name: str, scores: list[list[int]], *seeds: int) -> list[Version]:
    """Runs whose answers, [runs][rows], score so many tenths. The base model scores 0.2 in each row."""
    rows = [row(number, " ".join(LETTERS)) for number in range(len(scores[0]))]
    texts = [[[" ".join(LETTERS[:n].ljust(10, "x"))] for n in of_run] for of_run in scores]
    base = " ".join("ab" + 8 * "x")
    made = [version(f"{name}-{seed}", rows, of_run, base) for seed, of_run in zip(seeds, texts, strict=True)]
    params = [{"profile": "p", "train": {"seed": seed}} for seed in seeds]
    hashes = [{"models/adapter": f"{name}{seed}", "howto/training": "same"} for seed in seeds]
    return [replace(one, params=p, hashes=h) for one, p, h in zip(made, params, hashes, strict=True)]


def test_runs_of_one_version_are_one_side_whose_interval_is_over_rows_and_seeds() -> None:
    old, new = runs("old", [[3, 1], [5, 3]], 1, 2), runs("new", [[4, 6], [8, 8], [6, 4]], 1, 2, 3)
    found = compare_versions(old, new, CONFIG)
    assert [run.rougeL for run in (*found.old.runs, *found.new.runs)] == pytest.approx([0.2, 0.4, 0.5, 0.8, 0.5])
    assert [run.training_seed for run in found.new.runs] == [1, 2, 3]
    assert (found.old.name, found.new.name, found.new.seeds) == (
        "the mean of old-1, old-2",
        "the mean of new-1, new-2, new-3",
        1,
    )
    assert [side.metrics["rougeL"] for side in (found.old, found.new)] == pytest.approx([0.3, 0.6])
    assert found.new.metrics["rougeL_run_sd"] == pytest.approx(math.sqrt(0.03), abs=1e-6)
    of_old, of_new = np.array([[0.3, 0.5], [0.1, 0.3]]), np.array([[0.4, 0.8, 0.6], [0.6, 0.8, 0.4]])  # [rows, runs]
    expected = over_rows_and_seeds(of_new, of_old, confidence=0.95)
    names = ("rougeL_low", "rougeL_high", "p_value", "rougeL_se_rows", "rougeL_se_seeds")
    assert [found.delta[name] for name in names] == pytest.approx(expected, abs=1e-6)
    assert found.delta["rougeL"] == pytest.approx(0.3) and found.delta["wins"] == 2
    assert found.params == {} and found.warnings == []
    assert found.detectable == pytest.approx(
        (expected.high - expected.low) / 2 + 0.8416 * math.hypot(expected.se_rows, expected.se_seeds), rel=1e-3
    )
    assert "On 2 rows and 5 runs, there is no clear difference" in found.conclusion
    assert (found.results[0]["old_rougeL"], found.results[0]["new_rougeL"]) == pytest.approx((0.4, 0.6))


def test_the_base_model_has_no_spread_over_seeds_unless_its_answers_differ_between_the_runs() -> None:
    scores = [[4, 6, 3], [8, 8, 5]]
    found = compare_versions([], runs("run", scores, 1, 2), CONFIG)
    assert (found.old.name, found.old.runs, found.changed_base_answers) == ("the base model", [], 0)
    assert found.old.metrics["rougeL"] == pytest.approx(0.2) and "rougeL_run_sd" not in found.old.metrics
    expected = over_rows_and_seeds(np.array(scores).T / 10, np.full((3, 1), 0.2), confidence=0.95)
    assert found.delta["rougeL_high"] == pytest.approx(expected.high, abs=1e-6)
    one, other = runs("run", scores, 1, 2)
    other.answers["base"][:] = other.answers["adapter"]
    found = compare_versions([], [one, other], CONFIG)
    assert found.changed_base_answers == 3
    assert found.delta["rougeL_se_seeds"] > expected.se_seeds


def test_runs_are_compared_on_the_rows_that_all_of_them_have() -> None:
    one, other = runs("run", [[4, 6, 3], [8, 8, 5]], 1, 2)
    last = replace(one, name="last", rows=one.rows[1:], answers={name: of[1:] for name, of in one.answers.items()})
    shuffled = replace(other, rows=other.rows[::-1], answers={name: of[::-1] for name, of in other.answers.items()})
    found = compare_versions([last], [one, shuffled], CONFIG)
    assert [result["id"] for result in found.results] == ["2", "1"]
    assert [run.rougeL for run in (*found.old.runs, *found.new.runs)] == pytest.approx([0.45, 0.45, 0.65])
    assert [run.rows_left_out for run in (*found.old.runs, *found.new.runs)] == [0, 1, 1]
    first = replace(last, rows=one.rows[:1], answers={name: of[:1] for name, of in one.answers.items()})
    with pytest.raises(UserError, match=r"no test row is in all versions \(last has 2, run-1 has 3, last has 1\)"):
        compare_versions([last], [one, replace(first, params=other.params, hashes=other.hashes)], CONFIG)


def test_runs_of_one_side_differ_in_their_training_seed_alone() -> None:
    one, other = runs("run", [[4, 6], [8, 8]], 1, 2)
    same_seed = replace(other, params=one.params)
    rank = replace(other, params={"profile": "p", "train": {"seed": 2, "lora": {"r": 4}}})
    same_adapter = replace(other, hashes=one.hashes)
    for wrong, message in (
        (same_seed, r"run-1 and run-2: the same train\.seed"),
        (rank, r"run-2: train\.lora\.r: expected None as in run-1, got 4"),
        (same_adapter, "run-1 and run-2: the same adapter"),
    ):
        for sides in (([], [one, wrong]), ([one, wrong], [one])):
            with pytest.raises(UserError, match=message):
                compare_versions(*sides, CONFIG)
    own_seeds = [{"profile": "p", "train": {"seed": 7}, "profiles": {"p": {"train": {"seed": n}}}} for n in (1, 2)]
    both = [replace(run, params=own) for run, own in zip((one, other), own_seeds, strict=True)]
    assert [run.training_seed for run in compare_versions([], both, CONFIG).new.runs] == [1, 2]
    code = replace(other, hashes=other.hashes | {"howto/training": "changed", "metrics/train.json": "new"})
    found = compare_versions([], [one, code], CONFIG)
    assert found.warnings == ["runs of one side differ in other files: howto/training"]


def test_differing_params_are_those_behind_the_answers_under_any_profile() -> None:
    old = {"profile": "a", "train": {"lora": {"r": 8}}, "profiles": {"a": {"rate": 1}, "b": {"rate": 5}}}
    new = {"profile": "b", "train": {"lora": {"r": 8, "x": None}}, "profiles": {"a": {"rate": 9}, "b": {"rate": 2}}}
    found = differing(params_in_force(old), params_in_force(new | {"evaluate": {"seed": 1}}))
    assert found == {"profile": ("a", "b"), "profiles.<profile>.rate": (1, 2)}
