"""Download files of a repository on the Hugging Face hub, with `huggingface_hub` and into that library's cache.

The library honours HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE, its timeouts and the usual proxy variables. Within
one run it resumes a download that breaks. A later run keeps complete files, and starts the others again.
"""

import errno
import glob
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub as hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import disable_progress_bars

from howto.core.errors import UserError, one_line
from howto.core.hashing import sha256_of

WITHOUT_HUB = "set `profile: smollm2` in params.yaml, which needs no hub"
NOT_A_HUB = "the answer is not that of a hub. Check HF_ENDPOINT, the proxy, and whether the network expects a login."
OFFLINE = f"HF_HUB_OFFLINE is set, and the cache lacks files. Unset it, or {WITHOUT_HUB}."
PROBLEMS: dict[type[Exception], str] = {  # the first class that fits counts
    errors.HFValidationError: "not an id of the hub. Correct source in params.yaml.",
    errors.GatedRepoError: "access is granted on request. Ask on the hub's page, and set HF_TOKEN to your token.",
    errors.RepositoryNotFoundError: "the hub has no such repository, or it is private. Correct source or set HF_TOKEN.",
    errors.RevisionNotFoundError: "the hub has no such revision. Correct revision in params.yaml.",
    errors.FileMetadataError: NOT_A_HUB,
    JSONDecodeError: NOT_A_HUB,
    KeyError: NOT_A_HUB,
    errors.OfflineModeIsEnabled: OFFLINE,
    errors.LocalEntryNotFoundError: OFFLINE,
}
STATUSES = {
    401: "Set HF_TOKEN to a valid token, or unset it.",
    403: "Set HF_TOKEN to a token that may read it.",
    404: "Correct source or file in params.yaml, or check HF_ENDPOINT.",
    407: "Put user and password for the proxy into HTTPS_PROXY.",
    429: "Wait some minutes, and run again.",
}


@dataclass(frozen=True)
class Repository:
    """A "model" or a "dataset" repository at one commit, and the names of its files."""

    id: str
    kind: str
    commit: str
    names: list[str]

    def fetch(self, names: Collection[str]) -> dict[str, Path]:
        """Return the paths of files in the hub's cache, by name. Those that the cache lacks are downloaded.

        Raise UserError if there is no such file, it cannot be downloaded, or a large file's sha256 is not that of the
        hub.
        """
        if missing := set(names) - set(self.names):
            similar = [name for name in self.names if PurePosixPath(name).suffix == PurePosixPath(min(missing)).suffix]
            raise UserError(f"{self.id}: it has no file {min(missing)}; it has {', '.join(similar) or 'none like it'}.")
        with _plain_errors(self.id):
            only = [glob.escape(name) for name in names]
            folder = hub.snapshot_download(self.id, repo_type=self.kind, revision=self.commit, allow_patterns=only)
        files = {name: Path(folder, name) for name in names}
        for name, path in files.items():
            digest = path.readlink().name if path.is_symlink() else ""  # the cache names large files by their sha256
            if len(digest) == 64 and sha256_of(path) != digest:
                raise UserError(
                    f"{self.id}/{name}: its sha256 is not the hub's. Delete {path.resolve()} and run again."
                )
        return files

    def check_access(self, name: str) -> None:
        """Raise UserError if the file may not be read: everybody sees which files a gated repository has."""
        if not constants.is_offline_mode():
            with _plain_errors(self.id):
                hub.get_hf_file_metadata(hub.hf_hub_url(self.id, name, repo_type=self.kind, revision=self.commit))


def open_repository(id: str, kind: str, revision: str | None) -> Repository:
    """Find the commit of a "model" or "dataset" repository, and list its files. HF_HUB_OFFLINE: from the cache.

    Raise UserError if the hub cannot be reached, refuses access, or has no such repository or revision.
    """
    with _plain_errors(f"{id} at revision {revision}" if revision else id):
        listed = []
        if not constants.is_offline_mode():  # asked without retries: where there is no network, the stage ends at once
            info = hub.HfApi().repo_info(
                id, repo_type=kind, revision=revision, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
            listed = [file.rfilename for file in info.siblings]
        with disable_progress_bars():
            folder = Path(hub.snapshot_download(id, repo_type=kind, revision=revision, allow_patterns=[]))
        try:
            names = [file.path for file in hub.get_cached_repo_tree(id, repo_type=kind, revision=folder.name)]
        except errors.CachedRepoTreeNotFoundError:  # another program filled the cache
            names = listed or [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            if not listed:
                what = f"{id}: HF_HUB_OFFLINE is set, and the cache has no list of the repository's files"
                print(
                    f"warning: {what}. The {len(names)} in the cache are taken. They may not be all.", file=sys.stderr
                )
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise UserError(f"{id}: it has a file outside of itself, {name!r}. Take another source in params.yaml.")
    return Repository(id, kind, folder.name, sorted(names))


def _limit_waiting(request: Any) -> None:
    """Give a timeout to a request that has none: the library lists a repository's files without one."""
    timeout = request.extensions["timeout"]
    for phase, seconds in timeout.items():
        timeout[phase] = constants.HF_HUB_DOWNLOAD_TIMEOUT if seconds is None else seconds


@contextmanager
def _plain_errors(where: str) -> Iterator[None]:
    """Turn the library's errors into one line each, and its warnings off."""
    hub.logging.set_verbosity(hub.logging.CRITICAL)
    constants.HF_HUB_DISABLE_TELEMETRY = True
    if _limit_waiting not in (hooks := hub.get_session().event_hooks["request"]):
        hooks.append(_limit_waiting)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (errors.HTTPError, OSError, ValueError, KeyError, RuntimeError) as error:
        wrapped = isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__
        problem = _problem(wrapped or error)
        if problem is None:
            raise
        raise UserError(f"{where}: {problem}") from None


def _problem(error: BaseException) -> str | None:
    """Return what went wrong and what to do; None for an error that has nothing to do with the hub."""
    for kind, problem in PROBLEMS.items():
        if isinstance(error, kind):
            return problem
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return f"the hub answered {status}. {STATUSES.get(status, 'Run again later.' if status >= 500 else NOT_A_HUB)}"
    if isinstance(error, errors.HTTPError):
        address = urlsplit(constants.ENDPOINT)
        server = f"{address.scheme}://{address.netloc.rpartition('@')[2]}"  # without user and password
        return (
            f"the connection to {server} failed ({type(error).__name__}). Check the network and the proxy, run again "
            f"(HF_HUB_DOWNLOAD_TIMEOUT is {constants.HF_HUB_DOWNLOAD_TIMEOUT} s), or {WITHOUT_HUB}."
        )
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of the cache ({constants.HF_HUB_CACHE}) is full. Free space or set HF_HOME, and run again."
    if number is None:  # a check of the library, or Xet
        return f"the download failed ({one_line(error)}). Run again, or set HF_HUB_DISABLE_XET=1."
    return None
