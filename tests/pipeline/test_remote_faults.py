"""Remotes that fail, for real: each fault is one line, nothing damaged is taken, and a retry completes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.remote_servers import Store, local_store, s3_store, ssh_store

FILES, SIZE = 24, 200_000
STORES = {"local": local_store, "ssh": ssh_store, "s3": s3_store}
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounts a small file system, which only root may")
with_a_server = pytest.mark.parametrize("store", ["ssh", "s3"], indirect=True)


def call(folder: Path, store: Store | None, *command: str) -> subprocess.CompletedProcess[str]:
    git = {f"GIT_{role}_{part}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, **git, "PATH": path, "PYTHONPATH": str(ROOT), **(store.environment if store else {})}
    return subprocess.run(
        command, check=False, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


def remote(folder: Path, store: Store, *arguments: str) -> subprocess.CompletedProcess[str]:
    return call(folder, store, sys.executable, "-m", "howto.tools.remote", *arguments)


def works(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def stops(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """It said one line, with these words in it, and ended with 1."""
    print(done.stderr)
    assert done.returncode == 1, f"{done.stdout}\n{done.stderr}"
    lines = done.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    assert all(word in lines[0] for word in words), lines[0]


def add(folder: Path, store: Store, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = [f"{name}={value}" for name, value in store.settings.items()]
    return remote(folder, store, "add", url, *options, *arguments)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC project of one folder with many files of some size, so that a transfer has a midst."""
    folder = tmp_path_factory.mktemp("template") / "origin"
    (folder / "data").mkdir(parents=True)
    for number in range(FILES):
        (folder / "data" / str(number)).write_bytes(hashlib.shake_256(bytes([number])).digest(SIZE))
    for command in ("git init -q", "dvc init -q", "dvc config core.analytics false", "dvc add -q data"):
        works(call(folder, None, *command.split()))
    return folder


@pytest.fixture(scope="module", params=sorted(STORES))
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with STORES[request.param](tmp_path_factory.mktemp(request.param)) as one:
        yield one


@pytest.fixture(scope="module")
def origin(store: Store, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project with its remote, pushed and committed."""
    folder = shutil.copytree(template, tmp_path_factory.mktemp("origin") / "origin")
    works(add(folder, store, store.url))
    works(remote(folder, store, "push"))
    works(call(folder, store, "git", "add", "-A"))
    works(call(folder, store, "git", "commit", "-qm", "data"))
    return folder


@pytest.fixture
def clone(origin: Path, store: Store, tmp_path: Path) -> Path:
    """A fresh clone, with what belongs to one person alone."""
    return clone_of(origin, store, tmp_path / "clone")


def clone_of(origin: Path, store: Store, folder: Path) -> Path:
    works(call(origin, store, "git", "clone", "-q", str(origin), str(folder)))
    if (origin / ".dvc/config.local").exists():
        shutil.copyfile(origin / ".dvc/config.local", folder / ".dvc/config.local")
    return folder


def has_all(clone: Path, template: Path) -> bool:
    names = sorted(path.name for path in (template / "data").iterdir())
    return sorted(path.name for path in (clone / "data").iterdir()) == names and all(
        (clone / "data" / name).read_bytes() == (template / "data" / name).read_bytes() for name in names
    )


def cached(clone: Path) -> list[Path]:
    found = (clone / ".dvc/cache/files/md5").rglob("*")
    return [path for path in found if path.is_file() and not path.name.endswith(".tmp")]


def all_whole(cache: list[Path]) -> bool:
    said = {path: (path.parent.name + path.name).removesuffix(".dir") for path in cache}
    return all(hashlib.md5(path.read_bytes()).hexdigest() == name for path, name in said.items())


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@with_a_server
def test_a_server_that_goes_in_the_midst_of_a_push_is_one_line_and_a_retry_completes(
    store: Store, origin: Path, template: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(template, tmp_path / "second")
    works(add(folder, store, f"{store.url}/second"))
    assert store.wire is not None
    store.wire.cut_after(2_000_000)
    stops(remote(folder, store, "push"), "has gone", "`make push` again")
    arrived = [name for name in store.objects() if "/second/" in name or name.startswith("second/")]
    assert 0 < len(arrived) < FILES and all(store.is_whole(name) for name in arrived)
    stops(remote(folder, store, "push"), "the server is not there")
    store.wire.mend()
    assert f"{FILES + 1 - len(arrived)} objects pushed" in works(remote(folder, store, "push"))


@with_a_server
def test_a_server_that_falls_silent_is_given_up_and_a_retry_completes(
    store: Store, clone: Path, template: Path
) -> None:
    if store.kind == "s3":
        works(call(clone, store, "dvc", "remote", "modify", "--local", "store", "read_timeout", "1"))
    assert store.wire is not None
    store.wire.silent_after(3_000_000)
    stops(remote(clone, store, "pull"), "has gone", "`make pull` again")
    arrived = cached(clone)
    store.wire.mend()
    assert len(arrived) < FILES and all_whole(arrived) and not (clone / "data").exists()
    works(remote(clone, store, "pull"))
    assert has_all(clone, template)


@with_a_server
def test_a_server_that_goes_in_the_midst_of_a_pull_is_one_line_and_a_retry_completes(
    store: Store, clone: Path, template: Path
) -> None:
    assert store.wire is not None
    store.wire.cut_after(3_900_000)
    stops(remote(clone, store, "pull"), "has gone", "`make pull` again")
    arrived = cached(clone)
    store.wire.mend()
    assert 0 < len(arrived) < FILES and all_whole(arrived) and not (clone / "data").exists()
    works(remote(clone, store, "pull"))
    assert has_all(clone, template)


@pytest.mark.parametrize(
    "store", [pytest.param("local", marks=pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")),
              "ssh", "s3"], indirect=True,
)  # fmt: skip
def test_credentials_that_are_refused_are_one_line(store: Store, origin: Path) -> None:
    with store.lock_out():
        stops(remote(origin, store, "push"), "access is refused")
    works(remote(origin, store, "push"))


@pytest.mark.parametrize("damage", ["changed", "cut short", "list of files"])
def test_a_damaged_object_is_refused_and_named_and_can_be_mended(
    store: Store, origin: Path, clone: Path, template: Path, damage: str
) -> None:
    is_list = damage == "list of files"
    name = next(one for one in store.objects() if one.endswith(".dir") == is_list and "second" not in one)
    good = store.read(name)
    store.write(name, good[:-7] if damage == "cut short" else good.replace(good[20:24], b"0000"))
    stops(remote(clone, store, "pull"), "damaged", name.split("/")[-1], "MEND=1")
    assert not (clone / "data").exists() and all_whole(cached(clone))
    assert "1 of them in the place of damaged ones" in works(remote(origin, store, "push", "--mend"))
    assert store.read(name) == good
    works(remote(clone, store, "pull"))
    assert has_all(clone, template)


def test_plain_dvc_refuses_a_damaged_object_too(store: Store, origin: Path, clone: Path) -> None:
    name = next(one for one in store.objects() if not one.endswith(".dir") and "second" not in one)
    good = store.read(name)
    store.write(name, b"damaged" + good[7:])
    assert call(clone, store, "dvc", "pull").returncode == 1
    store.write(name, good)
    assert all_whole(cached(clone)) and not any(path.is_file() for path in clone.glob("data/*"))


def test_an_object_that_was_lost_on_the_remote_is_said_and_pushed_again(
    store: Store, origin: Path, clone: Path, template: Path
) -> None:
    name = next(one for one in store.objects() if not one.endswith(".dir") and "second" not in one)
    store.delete(name)
    stops(remote(clone, store, "pull"), "missing there", "`make push`")
    works(remote(origin, store, "push"))
    works(remote(clone, store, "pull"))
    assert has_all(clone, template)


@pytest.mark.parametrize("store", ["ssh"], indirect=True)
def test_another_host_key_is_refused_before_anything_is_sent(store: Store, origin: Path) -> None:
    known = Path(store.environment["HOME"]) / ".ssh" / "known_hosts"
    right = known.read_text(encoding="utf-8")
    other = (known.parents[2] / "other_key.pub").read_text(encoding="utf-8")
    for wrong in ("", f"{right.split()[0]} {other}"):
        known.write_text(wrong, encoding="utf-8")
        stops(remote(origin, store, "push"), "host key")
        doctor = call(origin, store, sys.executable, "-m", "howto", "doctor").stdout
        (line,) = [line for line in doctor.splitlines() if "DVC's remote" in line]
        assert line.startswith("problem") and "Host key is not trusted" in line, line
    known.write_text(right, encoding="utf-8")
    works(remote(origin, store, "push"))


@needs_root
@pytest.mark.parametrize("store", ["local", "ssh"], indirect=True)
def test_a_full_disk_on_the_remote_is_one_line_and_a_retry_completes(
    store: Store, template: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(template, tmp_path / "full")
    full = tmp_path / "store"
    with small_disk(full, 2_000_000):
        server = "" if store.kind == "local" else "/".join(store.url.split("/")[:3])
        works(add(folder, store, f"{server}{full}"))
        stops(remote(folder, store, "push"), "full")
        arrived = [path for path in full.rglob("*") if path.is_file() and not path.name.endswith(".tmp")]
        assert 0 < len(arrived) < FILES and all_whole(arrived)
        subprocess.run(["mount", "-o", "remount,size=20000000", full], check=True)
        works(remote(folder, store, "push"))


@needs_root
def test_a_full_disk_here_is_one_line_and_a_retry_completes(store: Store, clone: Path, template: Path) -> None:
    cache = clone / ".dvc" / "cache"
    with small_disk(cache, 2_000_000):
        stops(remote(clone, store, "pull"), "the disk is full")
        assert len(cached(clone)) < FILES and all_whole(cached(clone)) and not (clone / "data").exists()
        subprocess.run(["mount", "-o", "remount,size=20000000", cache], check=True)
        works(remote(clone, store, "pull"))
        assert has_all(clone, template)


def test_a_remote_that_cannot_be_reached_or_written_is_not_set_up(store: Store, template: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(template, tmp_path / "new")
    before = (folder / ".dvc/config").read_text(encoding="utf-8")
    bad = {"local": "/proc/nowhere", "s3": "s3://nobodys-bucket/x"}
    if store.kind == "ssh":
        assert store.wire is not None
        store.wire.cut()
        stops(add(folder, store, store.url), "the server is not there")
        store.wire.mend()
    else:
        stops(add(folder, store, bad[store.kind]), bad[store.kind])
    assert (folder / ".dvc/config").read_text(encoding="utf-8") == before
    assert not (folder / ".dvc/config.local").exists()


def test_no_secret_goes_where_git_would_take_it(store: Store, origin: Path, template: Path, tmp_path: Path) -> None:
    shared = (origin / ".dvc/config").read_text(encoding="utf-8")
    assert store.url in shared and "verify = true" in shared
    for secret in ("keyfile", "password", "secret", *(store.environment.get(n, n) for n in ("AWS_SECRET_ACCESS_KEY",))):
        assert secret not in shared
    assert call(origin, store, "git", "check-ignore", "-q", ".dvc/config.local").returncode == 0


def test_a_password_in_the_url_is_refused(template: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(template, tmp_path / "new")
    done = call(
        folder, None, sys.executable, "-m", "howto.tools.remote", "add", "ssh://me:geheim@example.org/x", "--local"
    )
    stops(done, "password")
    assert all("geheim" not in path.read_text() for path in (folder / ".dvc").glob("config*"))
    assert "geheim" not in done.stderr


@pytest.mark.parametrize("url", ["host:/srv/howto", "file:///srv/howto", "s3:/bucket/howto", "ssh://[::1/srv"])
def test_a_mistyped_url_is_no_folder(template: Path, url: str) -> None:
    before = sorted(template.iterdir())
    stops(call(template, None, sys.executable, "-m", "howto.tools.remote", "add", "--local", url), f"error: {url}: n")
    assert sorted(template.iterdir()) == before


@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_changed_output_is_kept_and_named(store: Store, clone: Path) -> None:
    works(remote(clone, store, "pull"))
    (clone / "data/0").unlink()  # else a link into the cache
    (clone / "data/0").write_bytes(b"changed here")
    stops(remote(clone, store, "pull"), "changed here, and kept", "`dvc checkout --force`")
    assert (clone / "data/0").read_bytes() == b"changed here"


def test_a_remote_of_a_kind_that_is_not_tried_says_how(template: Path) -> None:
    stops(call(template, None, sys.executable, "-m", "howto.tools.remote", "add", "gs://a/b"), "pip install 'dvc[gs]'")


def test_no_remote_is_one_line(template: Path) -> None:
    stops(call(template, None, sys.executable, "-m", "howto.tools.remote", "pull"), "make remote URL=")


def test_a_default_remote_that_nobody_set_up_is_one_line(template: Path, tmp_path: Path) -> None:
    shutil.copytree(template, tmp_path / "copy")
    (tmp_path / "copy/.dvc/config").write_text("[core]\n    remote = gone\n", encoding="utf-8")
    stops(
        call(tmp_path / "copy", None, sys.executable, "-m", "howto.tools.remote", "push"),
        "'gone' is the default remote, and has no URL",
    )
