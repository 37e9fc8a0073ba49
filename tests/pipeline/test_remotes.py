"""A team and its remote, with real DVC and real servers: what one has pushed, a fresh clone of another need not run."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.pipeline.test_remote_faults import STORES, add, call, remote, works
from tests.support.remote_servers import Store

SECRETS = {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"}


@pytest.fixture(scope="module", params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as one:
        yield one


@pytest.fixture(scope="module")
def origin(store: Store, known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The maker's clone: its secrets are given as options alone, its run is pushed, its .dvc/config committed."""
    folder = shutil.copytree(known, tmp_path_factory.mktemp("origin") / "origin", symlinks=True)
    secrets = {option: store.environment[name] for option, name in SECRETS.items() if name in store.environment}
    without = {name: value for name, value in store.environment.items() if name not in SECRETS.values()}
    maker = replace(store, environment=without, settings={**store.settings, **secrets})
    works(add(folder, maker, store.url))
    works(remote(folder, maker, "push"))
    works(call(folder, None, "git", "commit", "-qam", "A remote"))
    return folder


def clone_of(origin: Path, store: Store, folder: Path) -> Path:
    """What a colleague has, who gives a key of their own in DVC's words, or through the environment."""
    works(call(origin, None, "git", "clone", "-q", str(origin), str(folder)))
    if keyfile := store.settings.get("keyfile"):
        works(call(folder, None, "dvc", "remote", "modify", "--local", "store", "keyfile", keyfile))
    return folder


@pytest.fixture
def clone(origin: Path, store: Store, tmp_path: Path) -> Path:
    return clone_of(origin, store, tmp_path / "clone")


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", output)


def runs_nothing(clone: Path, store: Store, *arguments: str) -> bool:
    """`dvc repro` finds or takes from the run-cache all that the stages make, and git sees no change."""
    ran = stages_run(works(call(clone, store, "dvc", "repro", *arguments)))
    return not ran and not works(call(clone, None, "git", "status", "--short"))


def outputs(folder: Path) -> dict[str, bytes]:
    """What DVC versions, by path."""
    tops = ("data/raw", "data/prepared", "data/predictions", "models/base", "models/adapter")
    paths = [path for top in tops for path in (folder / top).rglob("*") if path.is_file()]
    paths += [folder / "log/hasil.jsonl", folder / "metrics/report.html"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.exists()}


def test_a_fresh_clone_pulls_and_runs_nothing(store: Store, origin: Path, clone: Path) -> None:
    assert outputs(clone) == {}
    assert "objects pulled" in works(remote(clone, store, "pull"))
    assert outputs(clone) == outputs(origin)
    assert runs_nothing(clone, store)


def test_dvc_push_and_dvc_pull_do_as_well(store: Store, known: Path, tmp_path: Path) -> None:
    first = shutil.copytree(known, tmp_path / "first", symlinks=True)
    works(call(first, None, "dvc", "remote", "add", "-q", "-d", "store", f"{store.url}/plain"))
    if address := store.settings.get("endpointurl"):
        works(call(first, None, "dvc", "remote", "modify", "store", "endpointurl", address))
    works(call(first, None, "git", "commit", "-qam", "A remote"))
    second = clone_of(first, store, tmp_path / "second")
    if store.kind == "ssh":
        shutil.copyfile(second / ".dvc/config.local", first / ".dvc/config.local")
    works(call(first, store, "dvc", "push", "-q"))
    works(call(second, store, "dvc", "pull", "-q"))
    assert outputs(second) == outputs(first)
    assert "up to date" in works(call(second, store, "dvc", "status"))


@pytest.fixture(scope="module")
def answer(known: Path) -> str:
    """What the model says where everything is."""
    return answer_in(known)


def answer_in(folder: Path) -> str:
    return works(call(folder, None, sys.executable, "-m", "howto", "ask", "How do I wash a kimono?"))


def test_the_adapter_and_its_base_are_pulled_alone_and_answer(
    store: Store, origin: Path, clone: Path, answer: str
) -> None:
    works(remote(clone, store, "pull", "train", "fetch_model"))
    assert outputs(clone) == {name: what for name, what in outputs(origin).items() if name.startswith("models/")}
    assert not (clone / "data/raw").exists() and not (clone / ".dvc/cache/runs").exists()
    assert answer.strip() and answer_in(clone) == answer


def test_what_the_run_cache_holds_is_not_run_where_dvc_lock_was_lost(store: Store, origin: Path, clone: Path) -> None:
    (clone / "dvc.lock").unlink()
    assert runs_nothing(clone, store, "--pull")  # git sees no change: dvc.lock is as it was
    assert outputs(clone) == outputs(origin)


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_run_that_one_pushed_is_not_run_by_another(store: Store, origin: Path, clone: Path, tmp_path: Path) -> None:
    other = clone_of(origin, store, tmp_path / "other")
    works(remote(clone, store, "pull"))
    said = (clone / "params.yaml").read_text(encoding="utf-8")
    assert said.count("resamples: 200 ") == 1
    changed = said.replace("resamples: 200 ", "resamples: 100 ")
    (clone / "params.yaml").write_text(changed, encoding="utf-8")
    assert stages_run(works(call(clone, store, "dvc", "repro"))) == ["evaluate"]
    scores = (clone / "metrics/metrics.json").read_bytes()
    works(remote(clone, store, "push"))
    (clone / "params.yaml").write_text(said, encoding="utf-8")
    assert runs_nothing(clone, store)

    works(remote(other, store, "pull"))
    (other / "params.yaml").write_text(changed, encoding="utf-8")
    assert stages_run(works(call(other, store, "dvc", "repro", "--pull"))) == []
    assert (other / "metrics/metrics.json").read_bytes() == scores != (origin / "metrics/metrics.json").read_bytes()


@pytest.mark.parametrize("store", ["ssh", "s3"], indirect=True)
def test_no_secret_is_in_git_or_on_the_remote(store: Store, origin: Path) -> None:
    secrets = [store.environment[name].encode() for name in SECRETS.values() if name in store.environment]
    if keyfile := store.settings.get("keyfile"):
        secrets += [keyfile.encode(), *Path(keyfile).read_bytes().splitlines()[1:-1]]
    assert len(secrets) >= 2
    private = (origin / ".dvc/config.local").read_bytes()
    assert any(secret in private for secret in secrets)  # it was given, and is kept here
    assert call(origin, None, "git", "check-ignore", "-q", ".dvc/config.local").returncode == 0

    would_commit = works(call(origin, None, "git", "ls-files", "--cached", "--others", "--exclude-standard"))
    assert ".dvc/config" in would_commit.splitlines()
    for name in would_commit.splitlines():
        content = (origin / name).read_bytes()
        assert not any(secret in content for secret in secrets), name
    history = works(call(origin, None, "git", "log", "-p", "--all")).encode()
    assert b"url = " in history and not any(secret in history for secret in secrets)

    stored = store.names()
    assert any("/runs/" in f"/{name}" for name in stored) and store.objects()
    assert not any(".probe" in name for name in stored)  # what `add` wrote to see whether it can is gone
    for name in stored:
        content = store.read(name)
        assert not any(secret in content for secret in secrets), name


def test_make_remote_without_a_url_does_not_take_the_clone_itself(project: Path) -> None:
    done = call(project, None, sys.executable, "-m", "howto.tools.remote", "add", "")
    assert done.returncode == 1 and "make remote URL=" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not works(call(project, None, "git", "status", "--short")) and not (project / ".dvc/config.local").exists()
