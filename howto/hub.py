"""Downloads from the Hugging Face hub, by `huggingface_hub`.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_OFFLINE` and the usual proxy variables are honoured by that library.
Files pass through its cache, so that a broken download goes on where it stopped.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, logging

from howto.stop import Stop

PROBE_SECONDS = 10
EMBEDDED = "set `profile: embedded` in params.yaml to run without a network"


def download_folder(repository: str, revision: str | None, patterns: Sequence[str], folder: Path) -> None:
    """Bring the files of a model repository whose names match `patterns` into `folder`.

    Raises:
        Stop: the hub cannot be reached, or has not what is asked for.
    """
    with _said_plainly(repository, revision):
        snapshot = Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    for path in sorted(snapshot.iterdir()):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def download_file(repository: str, name: str, revision: str | None, folder: Path) -> Path:
    """Bring one file of a data set repository into `folder`. Raises as `download_folder`."""
    with _said_plainly(repository, revision):
        cached = hf_hub_download(repository, name, repo_type="dataset", revision=revision)
    return Path(shutil.copyfile(cached, folder / Path(name).name))


@contextmanager
def _said_plainly(repository: str, revision: str | None) -> Iterator[None]:
    """Turn what can go wrong on the way to the hub into one line that says what to do."""
    at = f"{repository} at revision {revision}" if revision else repository
    logging.set_verbosity_error()  # it would tell of each of its own attempts
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        if not constants.HF_HUB_OFFLINE:
            # The library tries again for half a minute where there is no network: find that out at once.
            get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
        yield
    except GatedRepoError:
        raise Stop(
            f"{at}: access is granted on request; ask for it on the hub's page, then set HF_TOKEN to a token of yours"
        ) from None
    except RepositoryNotFoundError:
        raise Stop(
            f"{at}: the hub has no such repository, or it is private; mend source in params.yaml, or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise Stop(f"{at}: the hub has no such revision; mend revision in params.yaml") from None
    except OfflineModeIsEnabled:
        raise Stop(f"{at}: HF_HUB_OFFLINE is set and the cache has not all of it; unset it, or {EMBEDDED}") from None
    except LocalEntryNotFoundError:
        raise Stop(f"{at}: no network: the hub ({constants.ENDPOINT}) cannot be reached; {EMBEDDED}") from None
    except EntryNotFoundError as error:
        raise Stop(f"{at}: no such file ({str(error).splitlines()[0]}); mend file in params.yaml") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise Stop(f"{at}: the hub answered {status}; try again later (what was downloaded is kept)") from None
    except (HTTPError, ConnectionError, TimeoutError) as error:
        raise Stop(
            f"{at}: no network: the hub ({constants.ENDPOINT}) cannot be reached ({type(error).__name__}); {EMBEDDED}"
        ) from None
