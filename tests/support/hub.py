"""A server on loopback that speaks as much of the hub's API as a download needs, and fails on demand."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
OLDER = "b" * 40
LARGE = (".safetensors", ".parquet", ".model")  # stored under their sha256 (git-lfs), and served by another host


@dataclass
class Fault:
    """What happens to the next `times` requests whose path contains `path`.

    A number is the status of the answer. "page" answers with a page for people, "silence" never, and "hang up" closes
    the connection.
    """

    kind: int | str
    path: str = ""
    times: int = 1


@dataclass
class Asked:
    """A request that was answered."""

    method: str
    path: str
    token: str | None


@dataclass
class Hub:
    """Repositories by kind and name ("models/owner/name"), each with its files at `COMMIT`.

    `older` has files at `OLDER`, and `sent_instead` the bytes that are sent for a file of that name. A repository in
    `gated` gives files only to `token`; `stranger` is the token of another account.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    older: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_granted"
    stranger: str = "hf_stranger"
    faults: list[Fault] = field(default_factory=list)
    sent_instead: dict[str, bytes] = field(default_factory=dict)
    address: str = ""
    asked: list[Asked] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` on a free port of loopback until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
            hub.asked.append(Asked(self.command, path, token))
            if fault := next((one for one in hub.faults if one.times and one.path in path), None):
                fault.times -= 1
                return self._fail(fault.kind)
            cdn = path.startswith("cdn/")
            if token not in (None, hub.token, hub.stranger):
                return self._refuse(401, "", "Invalid credentials in Authorization header")
            parts = path.removeprefix("cdn/").removeprefix("api/").split("/")
            kind, owner, name, *rest = parts if parts[0] in ("models", "datasets") else ["models", *parts, "", ""]
            repository = f"{kind}/{owner}/{name}"
            if repository not in hub.repositories:
                return self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            revision = rest[1] if len(rest) > 1 and rest[1] else "main"
            commit = {"main": COMMIT, COMMIT: COMMIT, OLDER: OLDER}.get(revision, "")
            files = hub.repositories[repository] if commit == COMMIT else hub.older.get(repository, {})
            if not commit or not files:
                return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if path.startswith("api/"):
                info = {"id": f"{owner}/{name}", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
                return self._json([entry(*file) for file in files.items()] if rest and rest[0] == "tree" else info)
            if repository in hub.gated and token != hub.token and not cdn:
                return self._refuse(403 if token else 401, "GatedRepo", "Access to this repository is restricted")
            name = "/".join(part for part in rest[2:] if part)
            if name not in files:
                return self._refuse(404, "EntryNotFound", "Entry not found")
            headers = {"X-Repo-Commit": commit, "ETag": f'"{content_hash(name, files[name])}"'}
            if cdn or not name.endswith(LARGE):
                return self._send(200, hub.sent_instead.get(name, files[name]), headers)
            headers |= {"X-Linked-Etag": headers.pop("ETag"), "X-Linked-Size": str(len(files[name]))}
            headers |= {"Location": f"http://localhost:{hub.address.rpartition(':')[2]}/cdn{self.path}"}
            return self._send(302, b"", headers)

        def _fail(self, kind: int | str) -> None:
            if isinstance(kind, int):
                return self._refuse(kind, "", "Failed on demand")
            if kind == "page":
                return self._send(200, b"<html>Please log in to this network</html>", {"Content-Type": "text/html"})
            self.close_connection = True
            if kind == "silence":
                hub.over.wait()
            return None

        def _refuse(self, status: int, code: str, message: str) -> None:
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            self._send(status, json.dumps({"error": message}).encode(), headers)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        server.server_close()


def entry(name: str, data: bytes) -> dict[str, object]:
    """Return a line of the hub's list of files."""
    lfs = {"lfs": {"oid": sha256(data), "size": len(data), "pointerSize": 130}} if name.endswith(LARGE) else {}
    return {"type": "file", "path": name, "size": len(data), "oid": content_hash("", data), **lfs}


def content_hash(name: str, data: bytes) -> str:
    """Return the ETag of a file on the hub: its sha256 if it is large, git's sha1 otherwise."""
    return sha256(data) if name.endswith(LARGE) else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
