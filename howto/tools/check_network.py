"""Whether the hub and DVC's remote can be reached, where the active profile or the project needs them."""

from __future__ import annotations

import configparser
import importlib.util
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from howto.tools.finding import OK, PROBLEM, WARNING, Asked, Finding, environment, output_of

TIMEOUT = 3.0  # seconds until the hub has answered
REMOTE_SECONDS = 10.0  # until a remote has, the start of DVC included
HUB = "https://huggingface.co"
NO_HUB = "or set `profile: smollm2`, which needs no hub"
# Packages that DVC wants for a remote, by the beginning of its URL.
EXTRAS = {
    "s3": "dvc_s3",
    "gs": "dvc_gs",
    "azure": "dvc_azure",
    "ssh": "dvc_ssh",
    "gdrive": "dvc_gdrive",
    "hdfs": "dvc_hdfs",
    "webhdfs": "dvc_webhdfs",
    "oss": "dvc_oss",
    "webdav": "dvc_webdav",
    "webdavs": "dvc_webdav",
}
# A process of its own, so that a remote which never answers can be given up.
ASK_REMOTE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from dvc.repo import Repo
from howto.tools.remote import check_host_keys
check_host_keys()
remote = Repo(".").cloud.get_remote()
print(remote.fs.exists(remote.path))
"""


def check_hub(asked: Asked) -> list[Finding]:
    """Each thing that the profile takes from the hub: there, and free to be read."""
    if asked.params is None:
        return []
    wanted = list(_wanted(asked))
    if not wanted:
        return [Finding(OK, "hub", "not needed: the profile takes nothing from it")]
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return [_offline(kind, name) for kind, name, _ in wanted]
    return _all_at_once(wanted)


def _all_at_once(wanted: list[tuple[str, str, str]]) -> list[Finding]:
    """Ask for each in a thread of its own, that is given up after a while: looking up a name knows no time-out."""
    answers: dict[int, Finding] = {}
    threads = []
    for number, (kind, name, path) in enumerate(wanted):

        def ask(number: int = number, kind: str = kind, name: str = name, path: str = path) -> None:
            answers[number] = _ask(kind, name, path)

        threads.append(threading.Thread(target=ask, daemon=True))
        threads[-1].start()
    until = time.monotonic() + 1.2 * TIMEOUT
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    silent = "no answer; perhaps its name cannot be looked up"
    to_do = f"check the network, the DNS and HF_ENDPOINT, {NO_HUB}"
    return [
        answers.get(number) or Finding(PROBLEM, f"hub, {name}", silent, to_do)
        for number, (_, name, _) in enumerate(wanted)
    ]


def _wanted(asked: Asked) -> Any:
    """Kind, id, and the path of a file, of each thing from the hub."""
    from howto.core.errors import UserError
    from howto.sources.files import is_local
    from howto.sources.installed_package import PREFIX

    for kind, section, key in (
        ("models", "model", "source"),
        ("datasets", "data", "source"),
        ("datasets", "data", "test_source"),
    ):
        at = f"profiles.*.{section}"
        source, revision = asked.value(f"{at}.{key}"), asked.value(f"{at}.{key.replace('source', 'revision')}")
        if not isinstance(source, str):
            continue
        try:
            if is_local(source, None, f"{section}.{key}"):
                continue
        except UserError:  # fetch_model and fetch_data say what is wrong with it
            continue
        if source.startswith(PREFIX):
            continue
        name = "config.json" if section == "model" else str(asked.value(f"{at}.{key.replace('source', 'file')}") or "")
        yield kind, source, f"{revision or 'main'}/{name if not set(name) & set('*?[') else ''}"


def _ask(kind: str, name: str, path: str) -> Finding:
    """HEAD of a file, or of what the hub says of the repository; redirects are an answer and not followed."""
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    revision, _, file = path.partition("/")
    prefix = "" if kind == "models" else "datasets/"
    url = (
        f"{endpoint}/{prefix}{name}/resolve/{quote(path)}"
        if file
        else f"{endpoint}/api/{kind}/{name}/revision/{revision}"
    )
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "howto-doctor"})
    if token := _token():
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    where, proxy = f"hub, {name}", environment("HTTPS_PROXY" if url.startswith("https") else "HTTP_PROXY")
    by = f" by the proxy {urlsplit(proxy).hostname}" if proxy else ""
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
    except (OSError, ValueError, HTTPException) as error:
        why = getattr(error, "reason", error)
        said = f"{_address(endpoint)} cannot be reached{by} ({why})"
        return Finding(PROBLEM, where, said, f"check the network, HTTPS_PROXY and HF_ENDPOINT, {NO_HUB}")
    if status < 400:
        return Finding(OK, where, f"{_address(endpoint)} has it{by}")
    to_do = {
        401: "ask for access on its page, then set HF_TOKEN to a token of yours"
        if not token
        else "set HF_TOKEN to a valid token",
        403: "ask for access on its page, for the account of your token"
        if token
        else "set HF_TOKEN to a token of yours",
        404: "mend source, revision or file in params.yaml; a private one wants HF_TOKEN",
        407: "put user and password into HTTPS_PROXY",
    }.get(status)
    if to_do:
        return Finding(PROBLEM, where, f"{_address(endpoint)} answered {status}", to_do)
    return Finding(WARNING, where, f"{_address(endpoint)} answered {status}", "try again in some minutes")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A large file is elsewhere: that it is somewhere is enough."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _address(endpoint: str) -> str:
    """Without what a URL may hold of user and password."""
    parts = urlsplit(endpoint)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _token() -> str | None:
    """As the hub's library finds it."""
    if token := os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        return token.strip()
    try:
        path = Path(os.environ.get("HF_TOKEN_PATH") or _hub_home() / "token").expanduser()
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _hub_home() -> Path:
    """Return the hub library's folder, with its cache and the user's token."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"))
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()


def _offline(kind: str, name: str) -> Finding:
    cache = Path(os.environ.get("HF_HUB_CACHE") or _hub_home() / "hub").expanduser()
    if any(cache.glob(f"{kind}--{name.replace('/', '--')}/snapshots/*/*")):
        return Finding(OK, f"hub, {name}", "HF_HUB_OFFLINE is set, and the cache has it")
    said = f"HF_HUB_OFFLINE is set, and the cache ({cache}) does not have it"
    return Finding(PROBLEM, f"hub, {name}", said, f"unset HF_HUB_OFFLINE, {NO_HUB}")


def check_remote(asked: Asked) -> list[Finding]:
    """DVC's default remote, if there is one."""
    try:
        name, url = _remote()
    except (configparser.Error, OSError, ValueError) as broken:
        why = " ".join(str(broken).split())
        return [Finding(PROBLEM, "DVC's remote", f".dvc/config cannot be read ({why})", "git checkout .dvc/config")]
    if not name:
        return [Finding(OK, "DVC's remote", "none; `dvc remote add -d NAME URL` names one, to share data and adapters")]
    where = f"DVC's remote {name}"
    if not url:
        return [Finding(PROBLEM, where, "it is the default, and has no URL", f"dvc remote add -d -f {name} URL")]
    return [_local_remote(where, url) if urlsplit(url).scheme in ("", "file") else _outside_remote(where, url)]


def _outside_remote(where: str, url: str) -> Finding:
    """Ask it by DVC itself, with the user's credentials."""
    scheme = urlsplit(url).scheme
    extra = EXTRAS.get(scheme)
    if extra and importlib.util.find_spec(extra) is None:
        package = extra.replace("_", "-")
        return Finding(PROBLEM, where, f"{package} is not installed, which {scheme}:// wants", f"pip install {package}")
    if scheme in ("http", "https"):  # DVC takes a server that is not there for an empty remote
        return _web_remote(where, url)
    if importlib.util.find_spec("dvc") is None:
        return Finding(WARNING, where, "could not be asked without DVC", "`make run` installs it")
    status, said, error = output_of(sys.executable, "-c", ASK_REMOTE, seconds=REMOTE_SECONDS)
    if status == 0:
        return Finding(OK, where, "answers" if said.strip().endswith("True") else "answers, and is empty")
    return Finding(PROBLEM, where, f"cannot be reached: {error[:200]}", "check its URL, the network, your credentials")


def _web_remote(where: str, url: str) -> Finding:
    """Any answer but a refusal will do: DVC asks for files below it, with the credentials in its own configuration."""
    request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "howto-doctor"})
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT):
            return Finding(OK, where, f"{_address(url)} answers")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403, 407):
            said = f"{_address(url)} answers {error.code}: it wants credentials, which were not tried"
            return Finding(WARNING, where, said, "dvc remote modify --local NAME user|password|auth ...")
        return Finding(OK, where, f"{_address(url)} answers ({error.code})")
    except (OSError, ValueError, HTTPException) as error:
        said = f"{_address(url)} cannot be reached ({getattr(error, 'reason', error)})"
        return Finding(PROBLEM, where, said, "check its URL, the network and the proxy")


def _remote() -> tuple[str, str]:
    """Name and URL of the default remote; config.local comes over config. Raises configparser.Error."""
    settings: dict[str, dict[str, str]] = {}
    for path in (Path(".dvc/config"), Path(".dvc/config.local")):
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        if path.is_file():
            parser.read_string("\n".join(line.strip() for line in path.read_text(encoding="utf-8").splitlines()))
        for section in parser.sections():
            settings.setdefault(section.strip("'"), {}).update(parser[section])
    name = settings.get("core", {}).get("remote", "").strip("\"'")
    return name, settings.get(f'remote "{name}"', {}).get("url", "").strip("\"'")


def _local_remote(where: str, url: str) -> Finding:
    """A folder, from .dvc/ if it is relative."""
    path = Path(url.removeprefix("file://"))
    path = path if path.is_absolute() else Path(".dvc") / path
    if path.is_dir():
        if os.access(path, os.R_OK | os.W_OK):
            return Finding(OK, where, f"{path.resolve()} is there and can be written")
        return Finding(PROBLEM, where, f"{path.resolve()} cannot be written", "change its owner or mode")
    said = f"{path.resolve()} is not there: `dvc pull` would find nothing"
    return Finding(WARNING, where, said, "mount it, if it is on another machine; `dvc push` makes it otherwise")
