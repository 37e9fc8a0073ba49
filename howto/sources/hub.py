"""Downloads from the Hugging Face hub, by `huggingface_hub`.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE`, its timeouts and the usual proxy variables are honoured by
that library. Files pass through its cache, whose layout is specified: https://huggingface.co/docs/hub/local-cache.

The library drops the part of a file that it has when a download fails. So large files are brought into the cache
here, by the library's own `http_get` (not by Xet), as a part that stays: the next run goes on from there.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import (
    HfApi,
    constants,
    get_cached_repo_tree,
    get_token,
    hf_hub_url,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, logging, tqdm
from huggingface_hub.utils._http import default_client_factory

from howto.core.errors import UserError
from howto.core.hashing import sha256_of

T = TypeVar("T")
# Picks the wanted ones of the names of a repository's files.
Choose = Callable[[Sequence[str]], Sequence[str]]

CACHE = Path(constants.HF_HUB_CACHE)
SHA256 = re.compile("[0-9a-f]{64}")
NO_HUB = "set `profile: smollm2` in params.yaml, which needs no hub"
NOT_A_HUB = "the answer is not one of a hub; check HF_ENDPOINT, the proxy, and whether the network wants a login"
BROKEN = ("ReadError", "RemoteProtocolError")  # names of the HTTP library's exceptions for a connection that broke
REFUSED = {
    401: "it refuses the token; set HF_TOKEN to a valid one, or unset it",
    403: "it may not be read with this token; set HF_TOKEN to one that may",
    404: "it has no such thing; mend source in params.yaml, or check HF_ENDPOINT",
    407: "the proxy wants a login; put user and password into HTTPS_PROXY",
    429: "that was too often; wait some minutes and run again",
}


@dataclass(frozen=True)
class Snapshot:
    """Files of a repository at one commit, by their names in it. The paths are links in the cache."""

    commit: str
    files: dict[str, Path]


@contextmanager
def downloaded(repository: str, kind: str, revision: str | None, choose: Choose) -> Iterator[Snapshot]:
    """The files of a "model" or a "dataset" repository that `choose` picks. They come from the cache if they can.

    A block that refuses them with a UserError makes the cache forget those for which the hub gives no sha256:
    if one was damaged on its way, the next run would find it again.

    Raises:
        UserError: the hub cannot be reached, has not what is asked for, or sent something else.
    """
    with _said_plainly(f"{repository} at revision {revision}" if revision else repository):
        snapshot = _persistent(lambda: _download(repository, kind, revision, choose))
    try:
        yield snapshot
    except UserError:
        for path in snapshot.files.values():
            if not SHA256.fullmatch(_blob(path).name):
                with suppress(OSError):  # the refusal is what must be told
                    _forget(path)
        raise


def _download(repository: str, kind: str, revision: str | None, choose: Choose) -> Snapshot:
    if constants.HF_HUB_OFFLINE:
        names = choose(_cached_names(repository, kind, revision))
    else:
        info = _info(repository, kind, revision)
        names = choose([file.rfilename for file in info.siblings])
        _check_names(repository, names)
        for file in info.siblings:
            if file.rfilename in set(names) and file.lfs and SHA256.fullmatch(file.lfs.sha256):
                _bring_large_file(repository, kind, info.sha, file)
    # What is left are small files, and the links of them all.
    patterns = [glob.escape(name) for name in names]
    snapshot = Path(
        snapshot_download(
            repository, repo_type=kind, revision=revision, allow_patterns=patterns, tqdm_class=_NoProgress
        )
    )
    files = {name: snapshot / name for name in names}
    for name, path in files.items():
        _check_large_file(path, f"{repository}/{name}")
    return Snapshot(snapshot.name, files)


def _info(repository: str, kind: str, revision: str | None) -> Any:
    """Commit, files, their sizes and sha256. One request that is not repeated: where no network is, it ends at once."""
    try:
        info = HfApi().repo_info(repository, repo_type=kind, revision=revision, files_metadata=True)
    except (json.JSONDecodeError, KeyError, TypeError):
        raise FileMetadataError from None
    if not info.sha or info.siblings is None:
        raise FileMetadataError
    return info


def _cached_names(repository: str, kind: str, revision: str | None) -> list[str]:
    """The files of the repository as far as the cache knows them."""
    try:
        return [file.path for file in get_cached_repo_tree(repository, repo_type=kind, revision=revision)]
    except CachedRepoTreeNotFoundError:  # filled by another program: only what is there is known
        folder = Path(snapshot_download(repository, repo_type=kind, revision=revision))
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _check_names(repository: str, names: Sequence[str]) -> None:
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise UserError(
                f"{repository}: it names a file outside of itself ({name!r}); take another source in params.yaml"
            )


def _bring_large_file(repository: str, kind: str, commit: str, file: Any) -> None:
    """Bring a file that is stored under its sha256 (git-lfs) into the cache, from where an earlier run stopped."""
    repository_folder = repo_folder_name(repo_id=repository, repo_type=kind)
    blob = CACHE / repository_folder / "blobs" / file.lfs.sha256
    part = blob.with_name(f"{blob.name}.incomplete")
    lock = CACHE / ".locks" / repository_folder / f"{blob.name}.lock"
    if blob.exists():  # perhaps in a cache that others fill, and that cannot be written
        return
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():  # another process brought it meanwhile
            return
        if part.exists() and part.stat().st_size > file.lfs.size:
            part.unlink()
        with part.open("ab") as opened:
            http_get(
                hf_hub_url(repository, file.rfilename, repo_type=kind, revision=commit),
                opened,
                resume_size=opened.tell(),
                headers={**build_hf_headers(), "Accept-Encoding": "identity"},
                expected_size=file.lfs.size,
                displayed_filename=file.rfilename,
            )
        part.rename(blob)


def _check_large_file(path: Path, said: str) -> None:
    """A file that is stored under its sha256 has that one. `said` names it in the message."""
    blob = _blob(path)
    if SHA256.fullmatch(blob.name) and sha256_of(path) != blob.name:
        _forget(path)
        raise UserError(f"{said}: damaged on its way or in the cache, and now removed from there; run again")


def _blob(path: Path) -> Path:
    """Where the cache keeps the content of a file of a snapshot (it may be a link again, to a store of blobs)."""
    return Path(os.path.normpath(path.parent / path.readlink())) if path.is_symlink() else path


def _forget(path: Path) -> None:
    blob = _blob(path)
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


class _NoProgress(tqdm):  # type: ignore[misc]
    """For the small files: no bar."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})


def bounded_client() -> Any:
    """The library's client, with a timeout for the requests to which the library gives none."""

    def bound(request: Any) -> None:
        timeout = request.extensions["timeout"]
        for phase, seconds in timeout.items():
            timeout[phase] = constants.HF_HUB_DOWNLOAD_TIMEOUT if seconds is None else seconds

    client = default_client_factory()
    client.event_hooks["request"].append(bound)
    return client


def _persistent(ask: Callable[[], T]) -> T:
    """Ask again, up to three times, when the hub has troubles of its own or the connection breaks."""
    for pause in (1, 1, 2):  # seconds
        try:
            return ask()
        except HTTPError as error:
            if _status(error) < 500 and type(error).__name__ not in BROKEN:
                raise
        time.sleep(pause)
    return ask()


def _status(error: Exception) -> int:
    """The HTTP status of an answer; 0 for what is none."""
    return int(error.response.status_code) if isinstance(error, HfHubHTTPError) else 0


@contextmanager
def _said_plainly(at: str) -> Iterator[None]:
    """Turn what can go wrong on the way to the hub into one line that says what to do."""
    logging.set_verbosity(logging.CRITICAL)  # it would tell of each of its own attempts
    constants.HF_HUB_DISABLE_TELEMETRY = True  # it would tell the hub what it runs on, after a request of its own
    set_client_factory(bounded_client)
    try:
        yield
    except (HTTPError, OSError, EntryNotFoundError, HFValidationError) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
        problem = _problem(cause)
        if problem is None:
            raise
        raise UserError(f"{at}: {problem}") from None


def _problem(error: BaseException) -> str | None:  # noqa: PLR0911
    """What went wrong, and what to do; None if it is not about the hub."""
    match error:
        case HFValidationError():
            return "not an id of the hub; mend source in params.yaml"
        case GatedRepoError() if get_token():
            return "access is granted on request; ask for it on the hub's page, for the account of your token"
        case GatedRepoError():
            return "access is granted on request; ask for it on the hub's page, then set HF_TOKEN to a token of yours"
        case RepositoryNotFoundError():
            return "the hub has no such repository, or it is private; mend source in params.yaml, or set HF_TOKEN"
        case RevisionNotFoundError():
            return "the hub has no such revision; mend revision in params.yaml"
        case FileMetadataError():
            return NOT_A_HUB
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return f"HF_HUB_OFFLINE is set and the cache has not all of it; unset it, or {NO_HUB}"
        case HfHubHTTPError():
            status = _status(error)
            again = "it has troubles of its own; run again later (what came is kept)"
            return f"the hub answered {status}: {REFUSED.get(status, again if status >= 500 else NOT_A_HUB)}"
        case HTTPError():
            return _connection(type(error).__name__)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return (
                f"the disk of the cache ({CACHE}) is full; free space or set HF_HOME, and run again (what came is kept)"
            )
        case OSError(errno=None):  # the library's checks of sizes
            return f"the download is damaged ({str(error).splitlines()[0]:.100}); run again"
    return None


def _connection(kind: str) -> str:
    """What to say of an exception of the HTTP library, by its name."""
    if kind == "ReadTimeout":
        return (
            f"the hub went silent for {constants.HF_HUB_DOWNLOAD_TIMEOUT} s; run again (it goes on with what came), "
            "or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds"
        )
    if kind in BROKEN:
        return f"the connection broke ({kind}); run again (it goes on with what came)"
    address = urlsplit(constants.ENDPOINT)
    hub = f"{address.scheme}://{address.netloc.rpartition('@')[2]}"
    return f"no network: the hub ({hub}) cannot be reached ({kind}); check the network and the proxy, or {NO_HUB}"
