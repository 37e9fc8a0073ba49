"""`howto compare REV` pairs the rows that two versions share, and reports a difference only if the rows show it."""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from howto.core.errors import UserError
from howto.core.schema import Prediction, Row, read_rows, write_rows
from howto.tools.cli import main
from howto.tools.compare import Comparison, compare_versions, differing, params_in_force
from howto.tools.versions import Version
from tests.conftest import run
from tests.support.answers import CONFIG, prediction, row
from tests.support.in_process import Done, edit_params, run_here

TEST, ADAPTER = Path("data/prepared/test.jsonl"), Path("data/predictions/adapter.jsonl")


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


# --- With real git, real DVC and a tiny run --------------------------------------------------------------------------


def compare(folder: Path, *arguments: str) -> Done:
    """The command, and what it prints, in one line."""
    done = run_here(main, folder, "compare", *arguments)
    return done._replace(stdout=" ".join(done.stdout.split()))


def fails(done: Done, message: str) -> None:
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and re.search(message, done.stderr), done.stderr


def metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics/evaluation.json").read_text(encoding="utf-8")))


def test_a_version_against_itself_shows_no_difference(known: Path, tmp_path: Path) -> None:
    done = compare(known, "HEAD", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["delta"]["rougeL"] == 0 and found["delta"]["ties"] == found["rows"] and found["delta"]["p_value"] == 1
    assert found["params"] == {} and found["hashes"] == {} and found["changed_base_answers"] == 0
    assert found["new"]["metrics"].items() >= metrics(known)["adapter"].items()
    assert found["new"]["metrics"]["validation_loss"] is not None
    assert f"give the same answers to all {found['rows']} rows." in done.stdout


def test_an_experiment_is_compared_with_what_differs(project: Path, tmp_path: Path) -> None:
    run(project, "dvc", "exp", "run", "-n", "fast", "-S", "profiles.smollm2.train.learning_rate=0.05")
    fast = metrics(project)["adapter"]["rougeL"]
    run(project, "git", "checkout", "-q", ".")
    run(project, "dvc", "checkout", "-q")
    slow = metrics(project)["adapter"]["rougeL"]
    assert fast != slow
    done = compare(project, "fast", "--json", str(tmp_path / "found.json"), "--rows", "2")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert (found["old"]["metrics"]["rougeL"], found["new"]["metrics"]["rougeL"]) == (fast, slow)
    assert found["params"] == {"profiles.<profile>.train.learning_rate": [0.05, 0.01]}
    assert "models/adapter" in found["hashes"] and "models/base" not in found["hashes"]
    assert "│ profiles.<profile>.train.learning_rate │ 0.05 │ 0.01 │" in done.stdout
    assert "Largest gains:" in done.stdout or "Largest regressions:" in done.stdout
    assert run(project, "git", "status", "--porcelain") == ""


def test_test_sets_that_differ_are_compared_on_their_common_rows(project: Path) -> None:
    rows = read_rows(project / TEST, Row)
    write_rows(project / TEST, [rows[0].model_copy(update={"output": "Other."}), *rows[1:]])
    run(project, "dvc", "commit", "-q", "-f")
    done = compare(project, "HEAD")
    assert f"on the {len(rows) - 1} held-out rows of both versions" in done.stdout
    assert re.search(r"1 test row of HEAD \(\w{7}\): left out", done.stdout)


def test_what_is_not_in_the_cache_comes_from_the_remote(project: Path, tmp_path: Path) -> None:
    run(project, "dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    run(project, "dvc", "push", "-q")
    shutil.rmtree(project / ".dvc/cache")
    assert compare(project, "HEAD").returncode == 0
    shutil.rmtree(tmp_path / "store")
    fails(compare(project, "HEAD"), "HEAD: .* is neither in DVC's cache nor in its remote .*`dvc fetch --all-commits")


def test_a_revision_that_does_not_exist_or_has_no_run_is_one_line(project: Path, finished: Path) -> None:
    for name in ("nope", ""):
        fails(compare(project, name), "no such revision.*git log --all")
    run(project, "git", "rm", "-q", "dvc.lock")
    run(project, "git", "commit", "-qm", "not run")
    fails(compare(project, "HEAD", "HEAD~1"), "HEAD: no data/prepared/test.jsonl: the commit has no run")
    fails(compare(finished, "HEAD"), "Run from the git repository with its .dvc folder")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [("\nprofile: smollm2", "\nprofile: tinyllama", "profile: tinyllama"), ("    r: 8 ", "    r: 9 ", "train")],
)
def test_answers_of_other_params_are_not_compared(project: Path, old: str, new: str, what: str) -> None:
    edit_params(project, old, new)
    fails(compare(project, "HEAD"), rf"params.yaml \({what}\).*`dvc repro`|made with other params")
    run(project, "git", "commit", "-qam", "not run")
    fails(compare(project, "HEAD~1", "HEAD"), rf"HEAD:params.yaml \({what}\): changed since")


def test_answers_of_an_older_adapter_or_that_dvc_lock_does_not_record_are_not_compared(project: Path) -> None:
    path = project / "dvc.lock"
    text = path.read_text(encoding="utf-8")
    pattern = r"(\n  train:\n.*?path: models/adapter\n.*?md5: )\w{32}"
    path.write_text(re.sub(pattern, rf"\g<1>{'0' * 32}", text, count=1, flags=re.DOTALL), encoding="utf-8")
    fails(compare(project, "HEAD"), "dvc.lock: models/adapter was made again after infer@adapter read it")
    answers = read_rows(project / ADAPTER, Prediction)
    write_rows(project / ADAPTER, [answers[0].model_copy(update={"text": "mine"}), *answers[1:]])
    fails(compare(project, "HEAD"), "adapter.jsonl: not the file that dvc.lock records")
