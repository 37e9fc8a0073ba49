"""The commands work wherever the project is: in a larger repository, a worktree or a submodule, under any path."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from howto.core.schema import Prediction, read_rows, write_rows
from howto.tools.cli import main
from tests.conftest import call, run
from tests.pipeline.test_recover import YAML
from tests.support.in_process import Done, edit_params, run_here

ADAPTER = Path("data/predictions/adapter.jsonl")
PLACES = ("subfolder of a submodule", "subfolder with .dvc above and linked caches", "worktree with a detached head")


def put(place: str, base: Path, fill: Callable[[Path], None]) -> Path:
    """Return the project's folder, in git, with spaces and letters of other scripts in its path.

    `fill` writes the project with its .dvc, but no .git.
    """
    top = base / "Größe 大"
    folder = top / "teams/how to" if place.startswith("subfolder") else top
    folder.mkdir(parents=True)
    fill(folder)
    if place.startswith("subfolder"):
        (top / "another project.txt").write_text("of another team\n", encoding="utf-8")
    if "above" in place:
        (folder / ".dvc").rename(top / ".dvc")
    if is_linked := "linked" in place:
        (top / ".dvc/cache").rename(base / "cache")
        (top / ".dvc/cache").symlink_to(base / "cache")
        (top / ".dvc/config.local").write_text("[cache]\n    type = symlink\n", encoding="utf-8")
    for command in ("git init -q", "git add -A", "git commit -qm run"):
        run(top, *command.split())
    if is_linked:
        run(folder, "dvc", "checkout", "-q", "--relink")
    if place == "worktree with a detached head":
        tree = base / "other tree é"
        run(top, "git", "worktree", "add", "-q", "--detach", str(tree))
        (tree / ".dvc/cache").symlink_to(top / ".dvc/cache")
        run(tree, "dvc", "checkout", "-q")
        return tree
    if "submodule" in place:
        (above := base / "above").mkdir()
        run(above, "git", "init", "-q")
        run(above, "git", "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(top), "part of it")
        project = above / "part of it" / folder.relative_to(top)
        (project / ".dvc/cache").symlink_to(folder / ".dvc/cache")
        run(project, "dvc", "checkout", "-q")
        return project
    return folder


def command(folder: Path, *arguments: str) -> Done:
    done = run_here(main, folder, *arguments)
    return done._replace(stdout=" ".join(done.stdout.split()))


@pytest.fixture(params=PLACES)
def project(request: pytest.FixtureRequest, known: Path, tmp_path: Path) -> Path:
    """The project with its finished run."""

    def fill(folder: Path) -> None:
        shutil.copytree(known, folder, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git", "tmp"))

    return put(request.param, tmp_path, fill)


def test_versions_are_compared_and_exported(project: Path, tmp_path: Path) -> None:
    assert json.loads(run(project, "dvc", "status", "--json")) == {}
    done = command(project, "compare", "HEAD")
    assert done.returncode == 0 and "give the same answers to all 12 rows." in done.stdout, done.stderr

    answers = read_rows(project / ADAPTER, Prediction)
    write_rows(project / ADAPTER, [answers[0].model_copy(update={"text": "Go."}), *answers[1:]])
    edit_params(project, "confidence: 0.95 ", "confidence: 0.9 ")
    run(project, "dvc", "commit", "-q", "-f")
    run(project, "dvc", "exp", "save", "-n", "other")
    run(project, "git", "checkout", "-q", ".")
    run(project, "dvc", "checkout", "-q")
    done = command(project, "compare", "other", "--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["changed_answers"] == 1 and found["rows"] == len(answers) and found["hashes"].keys() == {str(ADAPTER)}

    done = command(project, "export")
    md5 = re.search(r"train\.jsonl, md5 (\w{32})", (project / "models/exported/README.md").read_text(encoding="utf-8"))
    assert done.returncode == 0 and md5 and md5[1] in (project / "dvc.lock").read_text(encoding="utf-8")
    assert run(project, "git", "status", "--porcelain", ".") == ""


@pytest.mark.parametrize("project", [PLACES[0], "subfolder with .dvc above"], indirect=True)
def test_a_remote_of_today_serves_a_version_that_knew_none(project: Path, tmp_path: Path) -> None:
    run(project, "dvc", "remote", "add", "-q", "-d", "store", "store of all")  # relative to the working directory
    run(project, "dvc", "push", "-q")
    cache = Path(run(project, "dvc", "cache", "dir").strip())
    shutil.rmtree(cache.resolve())
    done = command(project, "compare", "HEAD")
    assert done.returncode == 0 and "give the same answers to all 12 rows." in done.stdout, done.stderr


@pytest.fixture(params=PLACES)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A project of one stage that has run."""

    def fill(folder: Path) -> None:
        (folder / ".dvc").mkdir()
        (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    no_scm = true\n", encoding="utf-8")
        (folder / "dvc.yaml").write_text(YAML, encoding="utf-8")
        (folder / "seed.txt").write_text("1", encoding="utf-8")
        run(folder, "dvc", "repro", "-q")
        shutil.rmtree(folder / ".dvc/tmp")
        (folder / ".dvc/config").write_text("[core]\n    analytics = false\n", encoding="utf-8")
        (folder / ".gitignore").write_text("/made.txt\n", encoding="utf-8")
        (folder / ".dvc/.gitignore").write_text("/tmp\n/cache\n/config.local\n", encoding="utf-8")

    (tmp_path / "clones of Ö").mkdir()
    return put(request.param, tmp_path, fill)


def test_head_is_verified_and_only_this_projects_uncommitted_changes_are_named(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "clones of Ö"))
    (small / "seed.txt").write_text("2", encoding="utf-8")
    (small / "Notizen für später.txt").write_text("mine", encoding="utf-8")
    for other in small.parents[1].glob("another project.txt"):
        other.write_text("changed", encoding="utf-8")
    done = command(small, "verify", "--here")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "REPRODUCED: all 1 outputs of 1 stages" in done.stdout and "another project" not in done.stdout
    assert "seed.txt" in done.stdout and "Notizen für später.txt" in done.stdout
    assert list((tmp_path / "clones of Ö").glob("verify-*")) == []


def test_what_a_killed_dvc_left_is_repaired(small: Path) -> None:
    run(small, "dvc", "status")
    (rwlock,) = {small / ".dvc/tmp/rwlock", small.parents[1] / ".dvc/tmp/rwlock"} & set(
        small.parents[1].rglob("rwlock")
    )
    lock = (small / "dvc.lock").read_bytes()
    rwlock.write_text('{"write": {"/ho', encoding="utf-8")
    (small / "dvc.lock").write_bytes(lock[:-40])
    done = command(small, "recover")
    assert done.returncode == 0 and done.stdout.count("half-written when DVC was killed") == 2, done.stderr
    assert (small / "dvc.lock").read_bytes() == lock
    assert "up to date" in call(small, "dvc", "repro").stdout
