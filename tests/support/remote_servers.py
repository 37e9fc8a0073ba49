"""Remotes for tests, on the loopback interface: a folder, OpenSSH and S3, and a connection that can fail."""

import getpass
import logging
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"  # sshd requires an absolute path, because it starts itself again
LOOPBACK = "127.0.0.1"


@dataclass
class Proxy:
    """A port that forwards to `target`, until so many bytes have passed."""

    target: int
    port: int = 0
    passed: int = 0  # bytes, in both directions
    closes_at: int | None = None
    _open: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Open the port, and forward everything."""
        self.close()
        self.passed, self.closes_at = 0, None
        listener = socket.create_server((LOOPBACK, self.port))
        self.port = int(listener.getsockname()[1])
        self._open.append(listener)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        """Close the port and all connections, as if the server had gone."""
        with self._lock:
            sockets, self._open = self._open, []
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((LOOPBACK, self.target))
                for one in (client, server):  # small blocks are sent at once, and not with the next answer
                    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._open += [client, server]
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while block := source.recv(16384):
                self.passed += len(block)
                if self.closes_at is not None and self.passed > self.closes_at:
                    self.close()
                    return
                sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)


@dataclass
class Store:
    """A remote: its URL, what DVC needs to reach it, and direct access to its objects."""

    url: str
    settings: dict[str, str] = field(default_factory=dict)  # of `dvc remote modify --local`
    environment: dict[str, str] = field(default_factory=dict)
    proxy: Proxy | None = None
    read: Callable[[str], bytes] = lambda _: b""
    write: Callable[[str, bytes], Any] = lambda *_: None
    names: Callable[[], list[str]] = list

    def objects(self, folder: str) -> list[str]:
        """Return the complete objects under `folder`. A `.tmp` file is an interrupted upload, which DVC never reads."""
        return [name for name in self.names() if name.startswith(f"{folder}/files/md5/") and not name.endswith(".tmp")]


def _in_folder(folder: Path, url: str, **more: Any) -> Store:
    def write(name: str, content: bytes) -> None:
        (folder / name).chmod(0o644)
        (folder / name).write_bytes(content)

    def names() -> list[str]:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    return Store(url, read=lambda name: (folder / name).read_bytes(), write=write, names=names, **more)


@contextmanager
def local_store(work: Path) -> Iterator[Store]:
    """A folder."""
    yield _in_folder(work / "store", str(work / "store"))


@contextmanager
def ssh_store(work: Path) -> Iterator[Store]:
    """OpenSSH's own server, run by the user who runs the tests, with keys made for this test alone."""
    if not Path(SSHD).exists():
        pytest.skip("no sshd on this machine; apt-get install openssh-server")
    (work / "home").mkdir(parents=True)
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / name], check=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd requires it
    with closing(socket.create_server((LOOPBACK, 0))) as free:
        proxy = Proxy(int(free.getsockname()[1]))
    (work / "sshd_config").write_text(
        f"ListenAddress {LOOPBACK}:{proxy.target}\nHostKey {work}/host_key\nAuthorizedKeysFile {work}/user_key.pub\n"
        "PidFile none\nStrictModes no\nUsePAM no\nMaxStartups 100\nSubsystem sftp internal-sftp\n",
        encoding="utf-8",
    )
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", work / "sshd_config"], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        next(line for line in server.stderr if "Server listening" in line)
        threading.Thread(target=server.stderr.read, daemon=True).start()
        proxy.start()
        yield _in_folder(
            work / "store",
            f"ssh://{getpass.getuser()}@{LOOPBACK}:{proxy.port}{work}/store",
            settings={"keyfile": str(work / "user_key")},
            environment={"HOME": str(work / "home")},
            proxy=proxy,
        )
    finally:
        proxy.close()
        server.terminate()
        server.wait()


@contextmanager
def s3_store(work: Path) -> Iterator[Store]:
    """Moto's S3 server, with one bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    address, proxy = f"http://{LOOPBACK}:{port}", Proxy(port)
    s3 = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
    )
    s3.create_bucket(Bucket="store")

    def names() -> list[str]:
        return [one["Key"] for one in s3.list_objects_v2(Bucket="store").get("Contents", [])]

    (work / "home").mkdir()
    try:
        proxy.start()
        yield Store(
            "s3://store",
            settings={"endpointurl": f"http://{LOOPBACK}:{proxy.port}"},
            environment={
                "HOME": str(work / "home"),
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_MAX_ATTEMPTS": "2",
            },
            proxy=proxy,
            read=lambda name: bytes(s3.get_object(Bucket="store", Key=name)["Body"].read()),
            write=lambda name, content: s3.put_object(Bucket="store", Key=name, Body=content),
            names=names,
        )
    finally:
        proxy.close()
        server.stop()


STORES = {"local": local_store, "ssh": ssh_store, "s3": s3_store}
