"""A server on loopback that speaks as much of the hub's API as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40


@dataclass
class Hub:
    """Repositories by kind and name ("models/owner/name"), each with its files at `COMMIT`."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    address: str = ""
    asked: list[str] = field(default_factory=list)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve `hub` on a free port of loopback until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            hub.asked.append(f"{self.command} {self.path}")

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            if not path:
                return self._send(200, b"")
            api = path.startswith("api/")
            parts = self._parts(path.removeprefix("api/"))
            if len(parts) < 3:
                return self._refuse(404, "EntryNotFound", f"no such page: {path}")
            kind, owner, name, *rest = parts
            files = hub.repositories.get(f"{kind}/{owner}/{name}")
            if files is None:
                return self._refuse(404, "RepoNotFound", "Repository not found")
            if f"{kind}/{owner}/{name}" in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._refuse(401, "GatedRepo", "Access to this repository is restricted")
            revision = rest[1] if len(rest) > 1 else "main"
            if revision not in ("main", COMMIT):
                return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            if api and rest and rest[0] == "tree":
                return self._send(200, json.dumps([self._entry(n, d) for n, d in files.items()]).encode())
            if api:
                siblings = [{"rfilename": n} for n in files]
                info = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings, "private": False, "gated": False}
                return self._send(200, json.dumps(info).encode())
            data = files.get("/".join(rest[2:]))
            if data is None:
                return self._refuse(404, "EntryNotFound", "Entry not found")
            etag = hashlib.sha256(data).hexdigest()
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0] or 0)
            extra = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if start:
                extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self._send(206 if start else 200, data[start:], extra)

        @staticmethod
        def _parts(path: str) -> list[str]:
            first = path.split("/", maxsplit=1)[0]
            return path.split("/") if first in ("models", "datasets") else ["models", *path.split("/")]

        @staticmethod
        def _entry(name: str, data: bytes) -> dict[str, object]:
            return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

        def _refuse(self, status: int, code: str, message: str) -> None:
            self._send(
                status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message}
            )

        def _send(self, status: int, body: bytes, extra: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (extra or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
