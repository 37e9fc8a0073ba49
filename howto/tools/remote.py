"""A remote for data, base model and adapters: set it up, push to it, pull from it. DVC does the work.

python -m howto.tools.remote add URL [--local] [NAME=VALUE ...]    also: make remote URL=... [LOCAL=1] [OPTIONS="..."]
python -m howto.tools.remote push [--mend]                         also: make push [MEND=1]
python -m howto.tools.remote pull [TARGET ...]                     also: make pull [TARGETS="..."]

`dvc push` and `dvc pull` do as well, and say a fault in DVC's words. These say it in one line, check a server's host
key, push and pull the run-cache too, and ask the remote what it has, where DVC trusts what it remembers of it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import urlparse

from tqdm import tqdm

from howto.core.errors import UserError, reports_errors
from howto.tools.remote_faults import Logged, line_of

NAME = "store"
TRIED = ("", "ssh", "s3")
# What a remote is set up with. DVC's own defaults: objects are not verified, and half an hour for a connection.
SETTINGS: dict[str, dict[str, Any]] = {
    "": {},
    "ssh": {"timeout": 30},
    "s3": {"connect_timeout": 10, "read_timeout": 30},
}
SHARED = {"endpointurl", "region", "port", "jobs"}  # of the options: no secret, and the same for the whole team


@reports_errors
def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="set the default remote, after a look whether it can be written")
    add.add_argument("url", metavar="URL", help="a folder, ssh://host/folder or s3://bucket/folder")
    add.add_argument("options", metavar="NAME=VALUE", nargs="*", help="of DVC, such as keyfile=~/.ssh/id_store")
    add.add_argument("--local", action="store_true", help="for this clone alone: .dvc/config.local")
    push = commands.add_parser("push", help="what this commit's dvc.lock names, and the run-cache")
    push.add_argument("--mend", action="store_true", help="read back what lies there, and replace what is damaged")
    pull = commands.add_parser("pull", help="what this commit's dvc.lock names, and the run-cache")
    pull.add_argument("targets", metavar="TARGET", nargs="*", help="stages or outputs; all, if none is said")
    arguments = parser.parse_args()
    if arguments.command == "add":
        _add(arguments.url, arguments.options, arguments.local)
    elif arguments.command == "push":
        _push(arguments.mend)
    else:
        _pull(arguments.targets)


def _add(url: str, options: list[str], local: bool) -> None:
    if not url.strip():
        raise UserError(
            "no URL is given; a folder, ssh://host/folder or s3://bucket/folder, as in `make remote URL=...`"
        )
    try:
        parsed = urlparse(url)
    except ValueError as error:
        raise UserError(f"{url}: no URL ({error}); ssh://host/folder, s3://bucket/folder, or a folder") from None
    if not parsed.netloc and re.match(r"[^/]*:", url):
        raise UserError(
            f"{url}: neither a folder nor a URL that is known here; ssh://host/folder, s3://bucket/folder, or a folder "
            f"(./{url}, if it is called so)"
        )
    scheme = parsed.scheme if parsed.netloc else ""
    if parsed.password is not None:
        raise UserError(
            "the URL has a password in it, and it would be committed with .dvc/config; leave it out: use a key, or "
            "OPTIONS=ask_password=true (docs/remotes.md)"
        )
    if scheme not in TRIED:
        raise UserError(
            f"{scheme}:// is not set up here; `pip install 'dvc[{scheme}]'` and `dvc remote add -d {NAME} {url}` may do"
        )
    if not scheme:
        url = str(Path(url).expanduser().absolute())
    for option in options:
        if not re.fullmatch(r"\w+=.+", option):
            raise UserError(f"{option}: an option is NAME=VALUE, such as keyfile=~/.ssh/id_store")
    given = dict(option.split("=", 1) for option in options)
    shared = {name: value for name, value in given.items() if name in SHARED}
    personal = {name: value for name, value in given.items() if name not in SHARED}
    settings = {"url": url, "verify": "true", **SETTINGS[scheme], **shared}

    from dvc.repo import Repo

    check_host_keys()
    with Logged() as logged:
        try:
            _check_that_it_can_be_written({**settings, **personal})
            with closing(Repo()) as repo:
                with repo.config.edit("local" if local else "repo") as config:
                    config["remote"][NAME] = settings
                    config["core"]["remote"] = NAME
                with repo.config.edit("local", validate=False) as config:
                    if not local:
                        config["remote"].pop(NAME, None)
                        config["core"].pop("remote", None)
                    if personal:
                        config["remote"].setdefault(NAME, {}).update(personal)
        except Exception as error:
            raise _stop_for(error, logged, url, "say it") from error
    where = ".dvc/config.local, for this clone" if local else ".dvc/config; commit it, and the team has it too"
    print(f"{url} can be read and written; it is the remote `{NAME}` now, in {where}")


def _check_that_it_can_be_written(settings: dict[str, Any]) -> None:
    """Write a small object, read it, remove it."""
    from dvc.fs import get_cloud_fs

    kind, config, folder = get_cloud_fs({}, **settings)
    fs = kind(**config)
    probe, content = fs.join(folder, f".probe-{token_hex(8)}"), b"written to see whether it can be"
    fs.makedirs(folder)
    with fs.open(probe, "wb") as file:
        file.write(content)
    with fs.open(probe, "rb") as file:
        read = file.read()
    fs.remove(probe)
    if read != content:
        raise UserError(f"{settings['url']}: what is written there is not what is read; another place is needed")


def _push(mend: bool) -> None:
    def push(repo: Any, odb: Any, logged: Logged) -> str:
        mended = _remove_damaged(repo, odb) if mend else 0
        number = repo.push(remote=_name(repo)) + _push_what_is_missing(repo, odb)
        if logged.absent:
            raise UserError("some outputs are neither here nor on the remote; `dvc repro` makes them, then push again")
        runs = repo.stage_cache.push(_name(repo))
        for infos in repo.stage_cache.get_used_objs(runs).values():  # `dvc repro --pull` needs what the runs made too
            repo.cloud.push(infos, remote=_name(repo))
        return f"{number} objects pushed" + (f", {mended} of them in the place of damaged ones" if mended else "")

    _with_remote("`make push`", push)


def _pull(targets: list[str]) -> None:
    def pull(repo: Any, odb: Any, logged: Logged) -> str:
        from dvc.exceptions import DownloadError

        _check_lists(repo, odb, targets)
        number = 0
        try:
            number = repo.fetch(targets or None, remote=_name(repo))
        except DownloadError:
            if not all(isinstance(error, FileNotFoundError) for error in logged.errors):
                raise
        used = {info.value for infos in repo.used_objs(targets or None).values() for info in infos}
        lost = sorted(one for one in used if not repo.cache.local.exists(one))
        if damaged := [one for one in lost if odb.exists(one)]:
            raise UserError(_damaged(odb, damaged))
        if lost or logged.absent:
            raise UserError(
                f"{_url(repo)}: objects of this commit are missing there ({len(lost) or 'a folder'}); "
                "`make push` in the clone that made the commit, then `make pull` here"
            )
        if not targets:
            repo.stage_cache.pull(_name(repo))
            _keep_metrics(repo)
        stats = repo.checkout(targets or None)["stats"]
        changed = ", ".join(f"{count} files {what}" for what, count in stats.items() if count)
        return f"{number} objects pulled" + (f", {changed}" if changed else "")

    _with_remote("`make pull`", pull)


def _keep_metrics(repo: Any) -> None:
    """Put into the cache what git brings, metrics and plots: without them the run-cache gives back no run."""
    from dvc_data.hashfile.hash import hash_file

    for out in repo.index.outs:
        if out.use_cache or not out.hash_info or repo.cache.local.exists(out.hash_info.value) or not out.exists:
            continue
        _, found = hash_file(out.fs_path, out.fs, repo.cache.local.hash_name)
        if found == out.hash_info:
            repo.cache.local.add(out.fs_path, out.fs, found.value)


def _damaged(odb: Any, objects: list[str]) -> str:
    first = odb.fs.unstrip_protocol(odb.oid_to_path(objects[0]))
    others = f" and {len(objects) - 1} more" if len(objects) > 1 else ""
    return (
        f"{first}{others}: damaged on the remote, and not taken; `make push MEND=1` in a clone that has it whole, "
        "then `make pull` here"
    )


def _check_lists(repo: Any, odb: Any, targets: list[str]) -> None:
    """Check the lists of folders' files there: DVC believes what it reads of them on the remote."""
    for out in repo.index.targets_view(targets or None).outs:
        if out.hash_info and out.hash_info.isdir and _is_whole(odb, out.hash_info.value) is False:
            raise UserError(_damaged(odb, [out.hash_info.value]))


def _is_whole(where: Any, name: str) -> bool | None:
    """Whether an object is what its name says; None if it is not there."""
    from dvc_data.hashfile.hash import hash_file

    try:
        _, found = hash_file(where.oid_to_path(name), where.fs, where.hash_name)
    except FileNotFoundError:
        return None
    return bool(found.value.removesuffix(".dir") == name.removesuffix(".dir"))


def _push_what_is_missing(repo: Any, odb: Any) -> int:
    """Push what DVC takes to be there since the list of its folder's files is; the remote itself is asked."""
    from dvc_data.hashfile.transfer import transfer

    used = {info for infos in repo.used_objs(push=True).values() for info in infos}
    there = set(odb.oids_exist({info.value for info in used}))
    lost = {info for info in used if info.value not in there}
    return len(transfer(repo.cache.local, odb, lost, cache_odb=repo.cache.local).transferred) if lost else 0


def _remove_damaged(repo: Any, odb: Any) -> int:
    """Remove from the remote what is not what its name says, if it is whole here; a push then brings it again."""
    used = sorted({info.value for infos in repo.used_objs(push=True).values() for info in infos})
    bar = tqdm(used, desc="reading back", unit="object", disable=not sys.stderr.isatty())
    damaged = [name for name in bar if _is_whole(odb, name) is False]
    for name in damaged:
        if not _is_whole(repo.cache.local, name):
            raise UserError(f"{_damaged(odb, [name])} (it is not whole in this clone)")
    for name in damaged:
        odb.delete(name)
    return len(damaged)


def _with_remote(again: str, action: Callable[[Any, Any, Logged], str]) -> None:
    """Let `action` work with the default remote, and print what it says."""
    from dvc.repo import Repo

    url = "the remote"
    check_host_keys()
    with Logged() as logged:
        try:
            with closing(Repo()) as repo:
                if not repo.config["core"].get("remote"):
                    raise UserError("no remote is set up; `make remote URL=...` does it (docs/remotes.md)")
                if not repo.config["remote"].get(_name(repo), {}).get("url"):
                    raise UserError(
                        f"{_name(repo)!r} is the default remote, and has no URL; `make remote URL=...` gives one"
                    )
                url = _url(repo)
                repo.config["remote"][_name(repo)]["verify"] = True  # also where `dvc remote add` has not said so
                odb = repo.cloud.get_remote_odb(_name(repo))
                odb.fs.exists(odb.path)  # a server that is not there is noticed once, not object by object
                said = action(repo, odb, logged)
                if logged.errors:
                    raise logged.errors[0]
        except Exception as error:
            raise _stop_for(error, logged, url, again) from error
    print(f"{url}: {said}")


def _stop_for(error: Exception, logged: Logged, url: str, again: str) -> Exception:
    """One line for what is not this project's mistake, else the error itself."""
    from dvc.exceptions import DvcException
    from dvc.fs import RemoteMissingDepsError

    if isinstance(error, UserError):
        return error
    if isinstance(error, (RemoteMissingDepsError, ImportError)):
        return UserError(f"{url}: a package is missing; `pip install -r requirements-remotes.lock`, and {again} again")
    if "without confirmation" in str(error):
        path = str(error).strip().splitlines()[-1].strip()
        return UserError(
            f"{path}: changed here, and kept; `dvc checkout --force` gives up the change, then {again} again"
        )
    if line := line_of([*logged.errors, error], url, again):
        return UserError(line)
    if logged.errors or isinstance(error, (DvcException, OSError)):
        first = logged.errors[0] if logged.errors else error
        return UserError(f"{url}: {' '.join(str(first).split()) or type(first).__name__}")
    return error


def check_host_keys() -> None:
    """Let DVC refuse a server of SSH that is not in known_hosts."""
    from dvc.fs import known_implementations

    known_implementations["ssh"]["class"] = "howto.tools.strict_ssh.StrictSSH"


def _name(repo: Any) -> str:
    return str(repo.config["core"]["remote"])


def _url(repo: Any) -> str:
    return str(repo.config["remote"][_name(repo)]["url"])


if __name__ == "__main__":
    main()
