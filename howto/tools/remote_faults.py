"""What went wrong between here and a remote, in one line: what it is, and what to do."""

from __future__ import annotations

import errno
import logging
import types
from collections.abc import Iterator

# By name, since a library is there only with the remote that needs it: asyncssh's, botocore's, aiohttp's, Python's.
GONE = {
    "DisconnectError", "SFTPConnectionLost", "SFTPNoConnection",
    "HTTPClientError", "ConnectionError", "ClientConnectionError", "ClientPayloadError",
    "TimeoutError", "gaierror", "ResponseStreamingError", "IncompleteReadError",
}  # fmt: skip
REFUSED = {"PermissionDenied", "PermissionError", "SFTPPermissionDenied", "AuthError", "NoCredentialsError"}
CREDENTIALS = {"PartialCredentialsError", "KeyImportError", "ProfileNotFound", "TokenRetrievalError"}
NOT_FOUND = "Some of the cache files do not exist"  # DVC only warns of objects that are neither here nor there


class Logged(logging.Handler):
    """Takes what DVC's parts would have printed line by line, an object each."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[BaseException] = []
        self.absent = False  # objects that are neither here nor on the remote

    def __enter__(self) -> Logged:
        for name in ("dvc", "dvc_data", "dvc_objects"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [self], False
        logging.getLogger("asyncssh").setLevel(logging.CRITICAL)
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        pass

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the error of a record."""
        if record.exc_info and record.exc_info[1] is not None:
            self.errors.append(record.exc_info[1])
        elif str(record.msg).startswith(NOT_FOUND):
            self.absent = True


def line_of(errors: list[BaseException], url: str, again: str) -> str | None:
    """The line for the first of `errors` that is known; None if none is. `again` is what to say once it is mended."""
    for error in errors:
        for one in _chain(error):
            if line := _line(one, url, again):
                return line
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it came from, the outermost first: what lies beneath may have been dealt with."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException, url: str, again: str) -> str | None:  # noqa: PLR0911
    names = {kind.__name__ for kind in type(error).__mro__}
    text = " ".join(str(error).split()).rstrip(".")
    if "HostKeyNotVerifiable" in names:
        return (
            f"{url}: the server's host key is not in ~/.ssh/known_hosts, or is another one there; compare its "
            f"fingerprint with what the server's owner says, let `ssh` take it in, and {again} again"
        )
    if "NoSuchBucket" in text or "bucket does not exist" in text:
        return f"{url}: there is no such bucket; make it, or correct the URL"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f"{error.filename2 or error.filename or 'a disk of this machine'}"
        return f"{where}: the disk is full; free space and {again} again (what is whole is kept)"
    if names & {"SFTPNoSpaceOnFilesystem", "SFTPQuotaExceeded", "SFTPFailure"}:
        return (
            f"{url}: the server cannot write ({text}), mostly for a full disk; "
            f"free space there and {again} again (what is whole is kept)"
        )
    if names & REFUSED:
        return f"{url}: access is refused ({text}); check key, user and rights (docs/remotes.md), and {again} again"
    if names & CREDENTIALS:
        return f"{url}: the credentials cannot be read ({text}); mend them (docs/remotes.md), and {again} again"
    if names & GONE:
        return (
            f"{url}: the server is not there, or has gone ({text or type(error).__name__}); "
            f"when it is back, {again} again: it goes on where it was"
        )
    return None
