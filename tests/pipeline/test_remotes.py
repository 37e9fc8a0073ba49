"""A colleague gets data and adapters with plain DVC commands, and nothing damaged or half-sent is accepted."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from howto.tools import cli
from tests.conftest import call, run, stages_run
from tests.support.in_process import run_here
from tests.support.remote_servers import STORES, Store

FILES, SIZE = 12, 200_000  # of a folder that takes some time to transfer

on_a_server = pytest.mark.parametrize("store", ["ssh", "s3"], indirect=True)
in_a_folder = pytest.mark.parametrize("store", ["local"], indirect=True)


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


@pytest.mark.parametrize(
    ("store", "damage"), [("local", "cut"), ("ssh", "cut"), ("s3", "cut"), ("local", "lost")], indirect=["store"]
)
def test_a_damaged_or_lost_object_fails_the_pull_and_a_push_to_an_empty_place_repairs_it(
    store: Store, origin: Path, clone: Path, damage: str
) -> None:
    assert dvc(origin, store, "push") == 0
    name = next(one for one in store.objects(origin.parent.name) if not one.endswith(".dir"))
    if damage == "cut":
        store.write(name, store.read(name)[:-7])
    else:
        (Path(store.url) / name).unlink()
    assert dvc(clone, store, "pull") == 1
    assert has_nothing_wrong(clone)
    for folder in (origin, clone):
        use_remote(folder, store, f"{store.url}/{origin.parent.name}-new")
    assert dvc(origin, store, "push") == dvc(clone, store, "pull") == 0
    assert has_all(clone, origin)


@in_a_folder
def test_a_damaged_list_of_a_folders_files_is_found_by_status_after_the_pull(
    store: Store, origin: Path, clone: Path
) -> None:
    assert dvc(origin, store, "push") == 0
    (name,) = [one for one in store.objects(origin.parent.name) if one.endswith(".dir")]
    first, second, *others = json.loads(store.read(name))
    first["md5"], second["md5"] = second["md5"], first["md5"]
    store.write(name, json.dumps([first, second, *others]).encode())
    assert dvc(clone, store, "pull") == 0  # DVC does not verify these lists
    assert dvc(clone, store, "status", "-q") == 1


@on_a_server
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


@pytest.mark.parametrize("store", ["ssh"], indirect=True)
def test_with_two_lines_of_ssh_config_an_unknown_host_key_is_refused_and_a_silent_server_is_given_up(
    store: Store, origin: Path, clone: Path
) -> None:
    assert dvc(origin, store, "push") == 0
    assert store.proxy is not None
    home, port, key = Path(store.environment["HOME"]), store.proxy.port, store.settings["keyfile"]
    known_hosts = home / ".ssh/known_hosts"
    options = f"-o BatchMode=yes -o UserKnownHostsFile={known_hosts} -i {key} -p {port}"
    (home / ".ssh/config").write_text(
        f"Host howto-store\n  ProxyCommand ssh {options} -W 127.0.0.1:{store.proxy.target} 127.0.0.1\n"
        "  ServerAliveInterval 1\n",
        encoding="utf-8",
    )
    use_remote(clone, store, f"{store.url}/{origin.parent.name}".replace(f"127.0.0.1:{port}", "howto-store"))
    assert dvc(clone, store, "pull") == 1
    assert list((clone / ".dvc/cache").rglob("*")) == []
    host_key = (home.parent / "host_key.pub").read_text(encoding="utf-8")
    known_hosts.write_text(f"[127.0.0.1]:{port} {host_key}", encoding="utf-8")
    store.proxy.drops_at = store.proxy.passed + 1_000_000
    assert dvc(clone, store, "pull") == 1 and has_nothing_wrong(clone)
    store.proxy.start()
    assert dvc(clone, store, "pull") == 0
    assert has_all(clone, origin)
