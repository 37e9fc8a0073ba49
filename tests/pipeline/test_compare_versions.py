"""`howto compare` on commits and experiments of real git and real DVC, with a tiny run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from howto.core.schema import Prediction, Row, read_rows, write_rows
from howto.tools.cli import main
from tests.conftest import run
from tests.support.in_process import Done, edit_params, run_here

TEST, ADAPTER = Path("data/prepared/test.jsonl"), Path("data/predictions/adapter.jsonl")


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
    for name in ("nope", "", "HEAD:"):
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


@pytest.fixture(scope="module")
def seeds(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with three runs, as if made with train.seed 42, 1 and 2: tags s42 and s1, and this folder."""
    folder = Path(shutil.copytree(known, tmp_path_factory.mktemp("seeds") / "project", symlinks=True))
    for old, new in ((42, 1), (1, 2)):
        run(folder, "git", "tag", f"s{old}")
        edit_params(folder, f"\n  seed: {old} ", f"\n  seed: {new} ")
        config = folder / "models/adapter/adapter_config.json"
        config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        answers = read_rows(folder / ADAPTER, Prediction)
        write_rows(folder / ADAPTER, [answers[0].model_copy(update={"text": f"1. Wait {new} days."}), *answers[1:]])
        run(folder, "dvc", "commit", "-q", "-f")
        run(folder, "git", "commit", "-qam", f"seed {new}")
    return folder


def test_the_fine_tuned_model_of_several_runs_is_compared_with_its_base(seeds: Path, tmp_path: Path) -> None:
    done = compare(seeds, "--of", "s42,s1,.", "--json", str(tmp_path / "found.json"), "--rows", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    runs = found["new"]["runs"]
    assert [one["training_seed"] for one in runs] == [42, 1, 2] and runs[2]["commit"] is None
    assert runs[0]["rougeL"] == metrics(seeds)["adapter"]["rougeL"] > runs[1]["rougeL"]  # `evaluate` saw the first run
    assert found["old"]["metrics"].items() >= metrics(seeds)["base"].items() and found["old"]["runs"] == []
    gain = sum(one["rougeL"] for one in runs) / 3 - found["old"]["metrics"]["rougeL"]
    assert found["delta"]["rougeL"] == pytest.approx(gain, abs=2e-6)
    assert found["params"] == {} and found["warnings"] == [] and found["changed_base_answers"] == 0
    assert f"3 runs: s42 ({runs[0]['commit'][:7]}) {runs[0]['rougeL']:.4f}, s1 (" in done.stdout
    assert "Intervals are over rows and training seeds." in done.stdout and "Another training seed" not in done.stdout


def test_one_run_of_the_base_and_fine_tuned_model_has_the_numbers_of_evaluate(known: Path, tmp_path: Path) -> None:
    done = compare(known, "--of", "HEAD", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["delta"] == metrics(known)["delta"]
    assert re.search(r"1 run: HEAD \(\w{7}\) 0\.\d{4}\.", done.stdout)
    assert (
        "Intervals are over rows. Another training seed would change the score of the fine-tuned model" in done.stdout
    )


def test_a_side_of_one_run_is_named_if_the_other_has_several(seeds: Path) -> None:
    done = compare(seeds, "s42,s1")
    assert "Another training seed would change the score of this folder too." in done.stdout, done.stderr


def test_a_list_with_a_run_that_cannot_be_one_of_it_is_refused_in_one_line(seeds: Path) -> None:
    fails(compare(seeds, "--of", "s1,nope"), "nope: no such revision")
    fails(compare(seeds, "--of", "s1,"), "an empty name: no such revision")
    fails(compare(seeds, "s42,s42"), r"s42 \(\w{7}\) and s42 \(\w{7}\): the same train.seed")
    fails(compare(seeds, "--of", "HEAD,."), r"HEAD \(\w{7}\) and this folder: the same train.seed")
    assert compare(seeds, "s1", "--of", "s42").returncode == 2
