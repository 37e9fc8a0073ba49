"""Two versions' answers, row by row: the difference is that of the rows that both have, and is called one only where
they show it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from howto.core.schema import Prediction, Row, read_rows, write_rows
from howto.evaluation.config import Evaluate
from howto.tools.cli import main
from howto.tools.compare import Comparison, compare, differing_params, sensitivity, verdict
from howto.tools.revision import Version
from tests.conftest import ROOT, run
from tests.support.in_process import Done, run_here

PARAMS = Evaluate(use_stemmer=False, confidence=0.95, resamples=500, seed=0, embedding_model=None)
TRIALS = 120


def row(number: int, reference: str = "a b c d", intent: str = "do it") -> Row:
    return Row(id=f"r{number}", category="c", instruction="i", input=intent, context="", output=reference)


def prediction(number: int, text: str, seed: int = 0) -> Prediction:
    return Prediction(
        id=f"r{number}", seed=seed, text=text, prompt_tokens=1, new_tokens=1, stop="eos" if text else "length",
        reference_tokens=1, reference_log_probability=None,
    )  # fmt: skip


def version(name: str, rows: list[Row], answers: Iterable[list[str]], base: str = "x") -> Version:
    """A version with these answers, a list of seeds for each row."""
    adapter = [[prediction(n, text, seed) for seed, text in enumerate(texts)] for n, texts in enumerate(answers)]
    bases = [[replace_text(one, base) for one in of_row] for of_row in adapter]
    params = {"profile": "p", "profiles": {"p": {}}}
    return Version(name, None, rows, {"base": bases, "adapter": adapter}, params, {}, None)


def replace_text(one: Prediction, text: str) -> Prediction:
    return one.model_copy(update={"text": text})


def words(count: int) -> str:
    """An answer that scores count / 10 against a reference of ten words, if it has ten words too."""
    return " ".join([*"abcdefghij"[:count], *(f"x{n}" for n in range(10 - count))])


REFERENCE = " ".join("abcdefghij")


def compared(before: list[int], after: list[int]) -> Comparison:
    """Versions whose answers score so many tenths."""
    rows = [row(n, REFERENCE) for n in range(len(before))]
    return compare(
        version("old", rows, [[words(n)] for n in before]), version("new", rows, [[words(n)] for n in after]), PARAMS
    )


def test_a_case_by_hand() -> None:
    rows = [row(0), row(1), row(2, "1. Go.\n2. Stop.")]
    before = version("old", rows, [["a b c d", "a b c d"], ["", ""], ["go stop", "go stop"]])
    after = version("new", rows, [["a b c d"], ["a b"], ["1. Go.\n2. Stop."]], base="y")
    found = compare(before, after, PARAMS)
    # ROUGE-L's F: "a b c d" 1; "a b" precision 1, recall 1/2: 2/3; "go stop" of "1 go 2 stop": 2/3.
    assert np.array([pair.rouge_l for pair in found.pairs]) == pytest.approx(np.array([(1, 1), (0, 2 / 3), (2 / 3, 1)]))
    assert found.against.rouge["rougeL"] == pytest.approx(5 / 9, abs=1e-6)
    assert found.of.rouge["rougeL"] == pytest.approx(8 / 9, abs=1e-6)
    assert found.rouge["rougeL"] == pytest.approx(3 / 9, abs=1e-6)
    assert (found.wins, found.ties, found.losses) == (2, 1, 0)
    # Of the 4 ways to set the signs of two gains two give a sum as large: p = 1/2.
    assert found.p_value == pytest.approx(0.5, abs=0.08)
    assert (found.against.seeds, found.of.seeds) == (2, 1)
    assert (found.against.well_numbered, found.of.well_numbered) == (0, 1)
    assert [side.ended_by_eos for side in (found.against, found.of)] == pytest.approx([4 / 6, 1], abs=1e-6)
    assert found.other_base_answers == 3
    assert verdict(found).startswith("No difference that 3 rows can show between new and old: +0.3333 ROUGE-L, 95%")


def test_a_rows_score_is_the_mean_over_its_seeds() -> None:
    rows = [row(0, REFERENCE)]
    found = compare(
        version("old", rows, [[words(2), words(4)]]), version("new", rows, [[words(9), words(7), words(8)]]), PARAMS
    )
    assert list(found.pairs[0].rouge_l) == pytest.approx([0.3, 0.8])


def test_rows_are_paired_by_id_where_they_ask_and_expect_the_same() -> None:
    before = version("old", [row(0), row(1), row(2)], [["a"], ["a b"], ["a b c"]])
    others = [row(0), row(1, intent="do that"), row(2, "a b"), row(3)]
    after = version("new", [others[3], others[2], others[1], others[0]], [["d"], ["c"], ["b"], ["a b"]])
    found = compare(before, after, PARAMS)
    assert [(pair.id, pair.answers) for pair in found.pairs] == [("r0", ("a", "a b"))]
    assert (found.rows, found.against.rows_alone, found.of.rows_alone) == (1, 2, 3)


def test_one_row_shows_nothing_however_much_better_it_is() -> None:
    assert verdict(compared([0], [10])).startswith("No difference that 1 rows can show between new and old: +1.0000")


def test_a_true_difference_is_seen_and_said_with_its_direction() -> None:
    chance = np.random.default_rng(0)
    before = chance.integers(1, 9, 200)
    after = np.clip(before + chance.integers(-2, 4, 200), 0, 10)  # half a tenth better, and noise
    found = compared(before.tolist(), after.tolist())
    assert found.p_value < 0.005 and found.interval[0] > 0
    assert verdict(found).startswith(
        f"new is better than old: {found.rouge['rougeL']:+.4f} ROUGE-L, 95% interval [+0.0"
    )
    assert verdict(compared(after.tolist(), before.tolist())).startswith("new is worse than old: -0.0")


def test_without_a_true_difference_one_is_claimed_in_about_5_percent_of_trials() -> None:
    chance = np.random.default_rng(1)
    claimed = 0
    for _ in range(TRIALS):
        before = chance.integers(0, 11, 40)
        after = np.where(chance.random(40) < 0.5, before, chance.integers(0, 11, 40))
        both = np.where(chance.random(40) < 0.5, (before, after), (after, before))
        claimed += "No difference" not in verdict(compared(both[0].tolist(), both[1].tolist()))
    assert 1 <= claimed <= 0.1 * TRIALS


def test_what_the_rows_could_have_shown_is_shown_as_often_as_is_said() -> None:
    chance = np.random.default_rng(2)
    noise = chance.integers(-3, 4, 60)
    found = compared([5] * 60, (5 + noise).tolist())
    half, often = found.half_width, found.shows_often
    assert often == pytest.approx(half * 2.8016 / 1.96, rel=1e-3)  # (1.96 + 0.8416) / 1.96
    assert f"of about {half:.3f} every second time, and one of {often:.3f} four times in five" in sensitivity(found)
    spread = float(noise.std()) / 10
    for effect, share in ((half, 0.5), (often, 0.8)):
        means = chance.normal(effect, spread, (4000, 60)).mean(axis=1)
        assert (means > half).mean() == pytest.approx(share, abs=0.03)


def test_params_that_differ_are_those_in_force_whatever_the_profile_is_called() -> None:
    old = {"profile": "a", "train": {"lora": {"r": 8}}, "profiles": {"a": {"rate": 1}, "b": {"rate": 5}}}
    new = {"profile": "b", "train": {"lora": {"r": 8, "x": None}}, "profiles": {"a": {"rate": 9}, "b": {"rate": 2}}}
    assert differing_params(old, new) == {"profile": ("a", "b"), "profiles.<profile>.rate": (1, 2)}


# --- With real git, real DVC and a tiny run --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """A tiny run, committed. Not to be changed: see `copied`."""
    return committed(finished, tmp_path_factory.mktemp("versions") / "project")


def committed(finished: Path, folder: Path) -> Path:
    """A copy of the finished folder with code, in git and DVC: a commit without the run, and one with it."""
    shutil.copytree(finished, folder)
    for name in (
        "dvc.yaml",
        "pyproject.toml",
        ".gitignore",
        ".dvcignore",
        ".dvc/config",
        "stages",
        "howto",
        "data/howto",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / name)
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", "dvc.yaml", "params.yaml")
    run(folder, "git", "commit", "-q", "-m", "not run")
    run(folder, "dvc", "commit", "-q", "-f")
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "run")
    return folder


@pytest.fixture
def copied(project: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(project, tmp_path / "project"))


def against(folder: Path, *arguments: str) -> Done:
    """The command, and what it prints, in one line."""
    done = run_here(main, folder, "compare", *arguments)
    return done._replace(stdout=" ".join(done.stdout.split()))


def saved(folder: Path, name: str, answers: list[Prediction]) -> None:
    """A DVC experiment with these answers by the fine-tuned model; the folder stays as it was."""
    write_rows(folder / "data/predictions/adapter.jsonl", answers)
    run(folder, "dvc", "commit", "-q", "-f", "infer@adapter")
    run(folder, "dvc", "exp", "save", "-n", name)
    run(folder, "git", "checkout", "-q", ".")
    run(folder, "dvc", "checkout", "-q", "infer@adapter")


def experiments(folder: Path) -> list[tuple[str, str]]:
    """(commit, name) of each."""
    listed = run(folder, "git", "for-each-ref", "--format=%(objectname) %(refname:lstrip=4)", "refs/exps")
    return [(commit, name) for commit, name in (line.split(" ", 1) for line in listed.splitlines())]


def test_a_version_against_itself_shows_no_difference(project: Path, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = against(project, "HEAD", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["rouge"]["rougeL"] == 0 and found["interval"] == [0, 0] and found["p_value"] == 1
    assert (found["wins"], found["ties"], found["losses"]) == (0, found["rows"], 0)
    assert found["against"]["validation_loss"] == found["of"]["validation_loss"] is not None
    assert found["params"] == {} and found["files"] == {} and found["other_base_answers"] == 0
    assert found["of"]["rouge"]["rougeL"] == metrics(project)["adapter"]["rougeL"]
    assert "No difference: this version and HEAD (" in done.stdout
    assert f"give the same answers to all {found['rows']} rows." in done.stdout
    assert "The base models' answers are the same in all rows." in done.stdout
    assert "What differs" not in done.stdout


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    return dict(json.loads((folder / "metrics/metrics.json").read_text(encoding="utf-8")))


def test_an_experiment_that_dvc_ran_is_compared_with_what_differs(copied: Path, tmp_path: Path) -> None:
    run(copied, "dvc", "exp", "run", "-n", "fast", "-S", "profiles.smollm2.train.learning_rate=0.05")
    fast = metrics(copied)["adapter"]["rougeL"]
    run(copied, "git", "checkout", "-q", ".")
    run(copied, "dvc", "checkout", "-q")
    slow = metrics(copied)["adapter"]["rougeL"]
    named = {name: commit for commit, name in experiments(copied)}
    file = tmp_path / "found.json"
    done = against(copied, "fast", "--json", str(file), "--rows", "2")
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text(encoding="utf-8"))
    assert (found["against"]["rouge"]["rougeL"], found["of"]["rouge"]["rougeL"]) == (fast, slow)
    assert fast != slow
    assert found["params"] == {"profiles.<profile>.train.learning_rate": [0.05, 0.01]}
    assert found["against"]["commit"] == named["fast"]
    assert "models/adapter" in found["files"] and "models/base" not in found["files"]
    assert "│ profiles.<profile>.train.learning_rate │ 0.05 │ 0.01 │" in done.stdout
    assert run(copied, "git", "status", "--porcelain") == ""

    # The other way round, and neither of them checked out: the same with the other sign.
    done = against(copied, "HEAD", "--of", "fast", "--json", str(file))
    turned = json.loads(file.read_text(encoding="utf-8"))
    assert turned["rouge"]["rougeL"] == -found["rouge"]["rougeL"]
    assert (turned["wins"], turned["losses"]) == (found["losses"], found["wins"])


def test_gains_and_losses_are_shown_the_greatest_first(copied: Path) -> None:
    rows = read_rows(copied / "data/prepared/test.jsonl", Row)
    answers = read_rows(copied / "data/predictions/adapter.jsonl", Prediction)
    saved(copied, "good", [replace_text(one, of.output) for one, of in zip(answers, rows, strict=True)])
    saved(copied, "bad", [replace_text(one, "Ask somebody.") for one in answers])
    done = against(copied, "good", "--of", "bad", "--rows", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(rf"\) is better in 0 rows, equal in 0 and worse in {len(rows)}; p = 0.00", done.stdout)
    assert re.search(r"bad \(\w{7}\) is worse than good \(", done.stdout)
    assert "The greatest losses:" in done.stdout and "The greatest gains:" not in done.stdout
    assert "good (" in done.stdout and "(1.00)" in done.stdout
    assert "Made with other code" not in done.stdout


def test_test_sets_that_differ_are_compared_where_they_agree(copied: Path) -> None:
    rows = read_rows(copied / "data/prepared/test.jsonl", Row)
    write_rows(copied / "data/prepared/test.jsonl", [rows[0].model_copy(update={"output": "Other."}), *rows[1:-2]])
    kept = {row.id for row in rows[:-2]}
    for model in ("base", "adapter"):
        path = copied / f"data/predictions/{model}.jsonl"
        write_rows(path, [one for one in read_rows(path, Prediction) if one.id in kept])
    run(copied, "dvc", "commit", "-q", "-f")
    done = against(copied, "HEAD")
    assert done.returncode == 0, done.stderr
    assert f"The fine-tuned models on the {len(rows) - 3} held-out rows of both" in done.stdout
    assert re.search(
        r"3 test rows of HEAD \(\w{7}\) are left out: this version does not have them, or asks", done.stdout
    )
    assert "1 test rows of this version are left out: HEAD (" in done.stdout

    write_rows(copied / "data/prepared/test.jsonl", [row.model_copy(update={"output": "Other."}) for row in rows[:-2]])
    run(copied, "dvc", "commit", "-q", "-f")
    done = against(copied, "HEAD")
    assert done.returncode == 1
    assert re.fullmatch(
        rf"error: HEAD \(\w{{7}}\) has {len(rows)} test rows, this version has {len(rows) - 2}, and none is in both: "
        r"there is nothing to compare\n",
        done.stderr,
    )


def test_what_is_not_in_the_cache_comes_from_the_remote(copied: Path, tmp_path: Path) -> None:
    commit = run(copied, "git", "rev-parse", "--short", "HEAD").strip()
    shutil.copytree(copied / ".dvc/cache", tmp_path / "cache")
    shutil.rmtree(copied / ".dvc/cache")
    done = against(copied, "HEAD")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: HEAD: data/prepared/test.jsonl is not in DVC's cache, nor to be had from")
    assert "bring it with `dvc fetch --all-commits data/prepared data/predictions/base.jsonl" in done.stderr
    shutil.copytree(tmp_path / "cache", copied / ".dvc/cache")
    run(copied, "dvc", "remote", "add", "-q", "-d", "store", str(tmp_path / "store"))
    run(copied, "dvc", "push", "-q")
    shutil.rmtree(copied / ".dvc/cache")
    done = against(copied, "HEAD")
    assert done.returncode == 0, done.stderr
    assert f"No difference: this version and HEAD ({commit}) give" in done.stdout


@pytest.mark.parametrize(
    ("revision", "said"),
    [
        ("nope", "nope: no such revision here; `git log --all` and `dvc exp list --all-commits` name those that are"),
        ("", "an empty name: no such revision here"),
        ("HEAD~1", "HEAD~1: it has no data/prepared/test.jsonl: committed without a run; compare with a revision that"),
    ],
)
def test_a_revision_without_answers_is_one_line(project: Path, revision: str, said: str) -> None:
    done = against(project, revision)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1


def test_a_folder_without_dvc_is_one_line(finished: Path) -> None:
    done = against(finished, "HEAD")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.endswith("comparing wants the git repository with its DVC folder\n")


def test_answers_in_the_folder_that_dvc_does_not_know_are_not_compared(copied: Path) -> None:
    path = copied / "data/predictions/adapter.jsonl"
    answers = read_rows(path, Prediction)
    path.unlink()
    assert against(copied, "HEAD").stderr == (
        "error: data/predictions/adapter.jsonl: not there; make it with `dvc repro`\n"
    )
    write_rows(path, [replace_text(answers[0], "mine"), *answers[1:]])
    done = against(copied, "HEAD")
    assert done.returncode == 1
    assert done.stderr.startswith("error: data/predictions/adapter.jsonl: not the file that dvc.lock knows")


def test_answers_of_other_params_are_not_compared(copied: Path) -> None:
    path = copied / "params.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new, said in (
        ("\nprofile: smollm2", "\nprofile: tinyllama", "params.yaml (profile: tinyllama)"),
        ("    r: 8 ", "    r: 9 ", "params.yaml (train)"),
    ):
        assert text.count(old) == 1
        path.write_text(text.replace(old, new), encoding="utf-8")
        done = against(copied, "HEAD")
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert f"error: {said}" in done.stderr and "`dvc repro`" in done.stderr, done.stderr
    run(copied, "git", "commit", "-qam", "not run")
    done = against(copied, "HEAD~1", "--of", "HEAD")
    assert done.returncode == 1
    assert done.stderr.startswith("error: HEAD:params.yaml (train): the answers were made with another value (train)")


def test_answers_of_another_adapter_than_was_made_last_are_not_compared(copied: Path) -> None:
    path = copied / "dvc.lock"
    before, _, train = path.read_text(encoding="utf-8").rpartition("\n  train:\n")
    adapter = train.index("path: models/adapter\n")
    start = train.index("md5: ", adapter) + 5
    path.write_text(f"{before}\n  train:\n{train[:start]}{'0' * 32}.dir{train[start + 36 :]}", encoding="utf-8")
    done = against(copied, "HEAD")
    assert done.returncode == 1
    assert done.stderr.startswith("error: dvc.lock: models/adapter was made anew since infer@adapter read it; run")


@pytest.mark.parametrize("place", ["", "params.yaml/found.json"])
def test_a_file_that_cannot_be_is_said_before_the_work(project: Path, place: str) -> None:
    done = against(project, "HEAD", "--json", str(project / place))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"error: {project / place}: no file can be there; name another one\n"


def test_json_and_of_go_with_against(project: Path) -> None:
    for arguments in (["--of", "HEAD"], ["--json", "x.json"]):
        done = run_here(main, project, *arguments)
        assert done.returncode == 2 and "--of and --json go with --against" in done.stderr
