"""A server on loopback that speaks as much of the hub's API as a download needs, and fails as it is told to.

It offers large files by Xet as the hub does, but cannot give them that way.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
OLDER = "b" * 40
LARGE = (".safetensors", ".parquet", ".model")  # stored under their sha256 (git-lfs), and served by another host
ON_THE_WAY = ("stall", "cut", "reset")  # faults that need a body


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path contains `path`.

    "refuse" answers 500, "forbid" 403, "page" with a page for people, "silence" not at all, and "hang up" with the
    end of the connection. The others concern the body of a
    file: once the byte at `offset` of the file is reached, "stall" sends nothing more, "cut" ends the connection,
    and "reset" ends it with a reset.
    """

    kind: Literal["refuse", "forbid", "page", "silence", "hang up", "stall", "cut", "reset"]
    path: str = ""
    times: int = 1
    offset: int = 0


@dataclass
class Asked:
    """A request that was answered."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """Repositories by kind and name ("models/owner/name"), each with its files at `COMMIT`.

    A repository in `gated` gives files to `token` alone. `older` are files at `OLDER`. `sent_instead` are bytes that
    are sent for a file of that name.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    older: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_granted"
    stranger: str = "hf_stranger"
    faults: list[Fault] = field(default_factory=list)
    ranges: bool = True
    sent_instead: dict[str, bytes] = field(default_factory=dict)
    address: str = ""
    asked: list[Asked] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)

    def fault(self, path: str, body: bool) -> Fault | None:
        """The fault that the next request for `path` meets."""
        for fault in self.faults:
            if fault.times and fault.path in path and (body or fault.kind not in ON_THE_WAY):
                fault.times -= 1
                return fault
        return None


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
            hub.asked.append(Asked(self.command, path, self.headers.get("Range"), token))
            fault = hub.fault(path, body=self.command == "GET" and ("/resolve/" in path or path.startswith("cdn/")))
            if fault and fault.kind not in ON_THE_WAY:
                return self._fail(fault)
            if path.startswith("cdn/"):
                return self._file(path.split("/", 2)[2], fault)
            if token not in (None, hub.token, hub.stranger):
                return self._refuse(401, "", "Invalid credentials in Authorization header")
            api = path.startswith("api/")
            parts = path.removeprefix("api/").split("/")
            kind, owner, name, *rest = parts if parts[0] in ("models", "datasets") else ["models", *parts, "", ""]
            repository = f"{kind}/{owner}/{name}"
            if repository not in hub.repositories:
                return self._refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            revision = rest[1] if len(rest) > 1 and rest[1] else "main"
            commit = {"main": COMMIT, COMMIT: COMMIT, OLDER: OLDER}.get(revision)
            files = hub.repositories[repository] if commit == COMMIT else hub.older.get(repository)
            if commit is None or files is None:
                return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if api and rest and rest[0] == "tree":
                return self._json([self._entry(*file) for file in files.items()])
            if api:
                siblings = [self._sibling(*file) for file in files.items()]
                return self._json({"id": f"{owner}/{name}", "sha": commit, "siblings": siblings})
            if repository in hub.gated and token != hub.token:
                return self._refuse(403 if token else 401, "GatedRepo", "Access to this repository is restricted")
            file = "/".join(part for part in rest[2:] if part)
            if file not in files:
                return self._refuse(404, "EntryNotFound", "Entry not found")
            data = files[file]
            headers = {"X-Repo-Commit": commit}
            if not file.endswith(LARGE):
                return self._body(hub.sent_instead.get(file, data), headers | {"ETag": f'"{git_hash(data)}"'}, fault)
            digest = sha256(data)
            port = hub.address.rpartition(":")[2]
            headers |= {"Location": f"http://localhost:{port}/cdn/{digest}/{file}"}
            headers |= {"X-Xet-Hash": digest, "X-Xet-Refresh-Route": f"{hub.address}/no-xet-here"}
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            return self._send(302, b"", headers)

        def _fail(self, fault: Fault) -> None:
            if fault.kind == "refuse":
                return self._refuse(500, "", "Internal Server Error")
            if fault.kind == "forbid":
                return self._refuse(403, "", "Forbidden")
            if fault.kind == "page":
                return self._send(200, b"<html>Please log in to this network</html>", {"Content-Type": "text/html"})
            self.close_connection = True
            if fault.kind == "silence":
                hub.over.wait()
            return None

        def _file(self, name: str, fault: Fault | None) -> None:
            """A large file, by its sha256."""
            digest = unquote(urlsplit(self.path).path).split("/")[2]
            every = [data for files in (*hub.repositories.values(), *hub.older.values()) for data in files.values()]
            data = next(data for data in every if sha256(data) == digest)
            self._body(hub.sent_instead.get(name, data), {"ETag": f'"{digest}"'}, fault)

        @staticmethod
        def _entry(name: str, data: bytes) -> dict[str, object]:
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
            if name.endswith(LARGE):
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
                entry["xetHash"] = sha256(data)
            return entry

        @staticmethod
        def _sibling(name: str, data: bytes) -> dict[str, object]:
            sibling: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
            if name.endswith(LARGE):
                sibling["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
            return sibling

        def _refuse(self, status: int, code: str, message: str) -> None:
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            self._send(status, json.dumps({"error": message}).encode(), headers)

        def _json(self, value: object) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _body(self, data: bytes, headers: dict[str, str], fault: Fault | None) -> None:
            """A file from where it is asked for, until a fault."""
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
            start = start if hub.ranges else 0
            if start:
                headers = headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            end = fault.offset if fault else None
            self._send(206 if start else 200, data[start:], headers, data[start:end])
            if fault is None:
                return
            self.wfile.flush()
            self.close_connection = True
            if fault.kind == "stall":
                hub.stalled.set()
                hub.over.wait()
            elif fault.kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        def _send(self, status: int, body: bytes, headers: dict[str, str], part: bytes | None = None) -> None:
            """Answer with `body`, of which only `part` is really sent."""
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                with suppress(ConnectionError):  # the client may have been killed
                    self.wfile.write(body if part is None else part)

    with _served(Handler) as hub.address:
        try:
            yield hub
        finally:
            hub.over.set()


@contextmanager
def forward(hub: Hub, host: str, login: str | None = None) -> Iterator[tuple[str, list[str]]]:
    """A forward proxy on loopback that knows one host, which is `hub`. Gives its address and the hosts asked for.

    With a `login`, the value that it wants of `Proxy-Authorization`, it refuses who has another.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            asked.append(url.netloc)
            if login and self.headers.get("Proxy-Authorization") != login:
                return self.send_error(407)
            if url.hostname not in (host, "localhost"):  # "localhost" serves the hub's large files
                return self.send_error(502)
            onward = http.client.HTTPConnection(urlsplit(hub.address).netloc)
            onward.request(self.command, f"{url.path}?{url.query}", headers=dict(self.headers))
            answer = onward.getresponse()
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(answer.read())
            return None

    with _served(Handler) as address:
        yield address, asked


@contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@cache
def sha256(data: bytes) -> str:
    """The name under which git-lfs stores a file, and the ETag of the hub for large ones."""
    return hashlib.sha256(data).hexdigest()


@cache
def git_hash(data: bytes) -> str:
    """The name under which git stores a file, and the ETag of the hub for small ones."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
