"""A colleague gets data and adapters with plain DVC commands, and nothing damaged or half-sent is accepted."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from howto.tools import cli
from tests.conftest import call, run, stages_run
from tests.support.in_process import run_here
from tests.support.remote_servers import STORES, Store

FILES, SIZE = 12, 200_000  # of a folder that takes some time to transfer


@pytest.fixture(scope="module", params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as one:
        yield one


def dvc(folder: Path, store: Store, *arguments: str) -> int:
    """Run DVC; return its exit status."""
    return call(folder, "dvc", *arguments, **store.environment).returncode


def use_remote(folder: Path, store: Store, url: str) -> Path:
    """Write what the commands of docs/remotes.md write into .dvc/config and .dvc/config.local."""
    section = "['remote \"store\"']\n    "
    config = f"[core]\n    remote = store\n{section}url = {url}\n    verify = true\n"
    (folder / ".dvc/config").write_text(config, encoding="utf-8")
    personal = section + "\n    ".join(f"{name} = {value}" for name, value in store.settings.items())
    (folder / ".dvc/config.local").write_text(personal, encoding="utf-8")
    return folder


def outputs(folder: Path) -> dict[str, bytes]:
    """Return what DVC versions in the real project, by path."""
    tops = ("data/raw", "data/prepared", "data/predictions", "models/base", "models/adapter")
    paths = [path for top in tops for path in (folder / top).rglob("*") if path.is_file()]
    paths += [folder / "log/hasil.jsonl", folder / "metrics/report.html"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.exists()}


@pytest.mark.parametrize("store", ["ssh"], indirect=True)
def test_a_fresh_clone_pulls_the_models_or_everything_and_runs_no_stage(
    store: Store, project: Path, tmp_path: Path
) -> None:
    run(project, "dvc", "remote", "add", "-q", "-d", "store", f"{store.url}/project")
    run(project, "dvc", "remote", "modify", "store", "verify", "true")
    run(project, "git", "commit", "-qam", "A remote")
    run(tmp_path, "git", "clone", "-q", str(project), "clone")
    for folder in (clone := tmp_path / "clone", project):
        for name, value in store.settings.items():
            run(folder, "dvc", "remote", "modify", "--local", "store", name, value)
    assert dvc(project, store, "push") == 0
    assert outputs(clone) == {}

    assert dvc(clone, store, "pull", "train", "fetch_model") == 0
    assert outputs(clone) == {name: what for name, what in outputs(project).items() if name.startswith("models/")}
    assert run_here(cli.main, clone, "ask", "How do I wash a kimono?").stdout.strip()

    assert dvc(clone, store, "pull") == 0
    assert outputs(clone) == outputs(project)
    assert stages_run(run(clone, "dvc", "repro")) == []
    assert run(clone, "git", "status", "--short") == ""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC project of one folder with many files. Not to be changed."""
    folder = tmp_path_factory.mktemp("template") / "origin"
    (folder / "data").mkdir(parents=True)
    for number in range(FILES):
        (folder / "data" / str(number)).write_bytes(hashlib.shake_256(bytes([number])).digest(SIZE))
    for command in ("git init -q", "dvc init -q", "dvc add -q data", "git add -A", "git commit -qm data"):
        run(folder, *command.split())
    return folder


@pytest.fixture
def origin(store: Store, template: Path, tmp_path: Path) -> Path:
    """A copy of it, whose remote is empty."""
    return use_remote(Path(shutil.copytree(template, tmp_path / "origin")), store, f"{store.url}/{tmp_path.name}")


@pytest.fixture
def clone(store: Store, origin: Path, tmp_path: Path) -> Path:
    """A colleague's fresh clone, with the same remote."""
    run(tmp_path, "git", "clone", "-q", str(origin), "clone")
    return use_remote(tmp_path / "clone", store, f"{store.url}/{tmp_path.name}")


def has_all(clone: Path, origin: Path) -> bool:
    return all((clone / f"data/{n}").read_bytes() == (origin / f"data/{n}").read_bytes() for n in range(FILES))


def has_nothing_wrong(clone: Path) -> bool:
    """Whether no file is in the workspace, and every object in the cache is what its name says."""
    objects = [path for path in (clone / ".dvc/cache/files/md5").rglob("*") if path.is_file() and path.suffix != ".tmp"]
    hashes = {path: (path.parent.name + path.name).removesuffix(".dir") for path in objects}
    right = all(hashlib.md5(path.read_bytes()).hexdigest() == name for path, name in hashes.items())
    return right and len(objects) <= FILES and not (clone / "data").exists()


def test_a_damaged_object_fails_the_pull_and_a_push_to_an_empty_place_repairs_it(
    store: Store, origin: Path, clone: Path
) -> None:
    assert dvc(origin, store, "push") == 0
    name = next(one for one in store.objects(origin.parent.name) if not one.endswith(".dir"))
    store.write(name, store.read(name)[:-7])
    assert dvc(clone, store, "pull") == 1
    assert has_nothing_wrong(clone)
    for folder in (origin, clone):
        use_remote(folder, store, f"{store.url}/{origin.parent.name}-new")
    assert dvc(origin, store, "push") == dvc(clone, store, "pull") == 0
    assert has_all(clone, origin)


@pytest.mark.parametrize("store", ["ssh", "s3"], indirect=True)
def test_an_interrupted_push_or_pull_never_looks_complete_and_the_next_one_completes_it(
    store: Store, origin: Path, clone: Path
) -> None:
    assert store.proxy is not None
    store.proxy.closes_at = store.proxy.passed + 1_000_000
    assert dvc(origin, store, "push") != 0
    store.proxy.start()
    arrived = store.objects(origin.parent.name)
    assert len(arrived) < FILES and not any(name.endswith(".dir") for name in arrived)
    assert dvc(clone, store, "pull") == 1 and has_nothing_wrong(clone)

    assert dvc(origin, store, "push") == 0
    store.proxy.closes_at = store.proxy.passed + 1_000_000
    assert dvc(clone, store, "pull") == 1 and has_nothing_wrong(clone)
    store.proxy.start()
    assert dvc(clone, store, "pull") == 0
    assert has_all(clone, origin)
