"""Servers for the tests of remotes, on loopback: OpenSSH, S3, and a wire before them that can be cut."""

from __future__ import annotations

import getpass
import hashlib
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
import requests
from botocore.config import Config
from moto.server import ThreadedMotoServer

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"  # an absolute path: sshd starts itself again
LOOPBACK = "127.0.0.1"


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind((LOOPBACK, 0))
        return int(one.getsockname()[1])


@dataclass
class Wire:
    """A port that leads to `target`, until it is cut: then it is as if the machine behind it were gone.

    Or until it is silent: connections stay, new ones come about, and nothing passes.
    """

    target: int
    port: int = field(default_factory=free_port)
    passed: int = 0  # bytes, both ways
    cut_at: int | None = None
    silent_at: int | None = None
    _listener: socket.socket | None = None
    _ends: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def mend(self) -> None:
        """Open the port, with nothing passed yet and no cut to come."""
        self.cut()
        self.passed, self.cut_at, self.silent_at = 0, None, None
        self._listener = socket.create_server((LOOPBACK, self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut_after(self, number: int) -> None:
        """Let so many more bytes pass, then cut."""
        self.cut_at = self.passed + number

    def silent_after(self, number: int) -> None:
        """Let so many more bytes pass, and then no more."""
        self.silent_at = self.passed + number

    def cut(self) -> None:
        with self._lock:
            ends, self._ends = self._ends, []
            if self._listener is not None:
                ends.append(self._listener)
                self._listener = None
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((LOOPBACK, self.target))
                for end in (near, far):  # small blocks go on at once, not with the answer to the one before
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._ends += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while block := source.recv(16384):
                self.passed += len(block)
                if self.cut_at is not None and self.passed > self.cut_at:
                    self.cut()
                    return
                if self.silent_at is None or self.passed <= self.silent_at:
                    sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)


@dataclass
class Store:
    """A remote of some kind, as a test sees it: where it is, how it is reached, and what lies there."""

    kind: str
    url: str
    wire: Wire | None
    environment: dict[str, str]
    settings: dict[str, str]
    read: Callable[[str], bytes]
    write: Callable[[str, bytes], None]
    delete: Callable[[str], None]
    names: Callable[[], list[str]]
    lock_out: Callable[[], Any]  # a context in which the server knows these credentials no more

    def objects(self) -> list[str]:
        """The stored objects under their final names, without what a broken upload has left beside them."""
        return [name for name in self.names() if "files/md5/" in name and not name.endswith(".tmp")]

    def is_whole(self, name: str) -> bool:
        """Whether an object is what its name says."""
        said = "".join(name.split("/")[-2:]).removesuffix(".dir")
        return hashlib.md5(self.read(name)).hexdigest() == said


def _folder_store(kind: str, folder: Path, url: str, lock_out: Callable[[], Any], **more: Any) -> Store:
    def write(name: str, content: bytes) -> None:
        (folder / name).chmod(0o644)
        (folder / name).write_bytes(content)

    return Store(
        kind=kind,
        url=url,
        read=lambda name: (folder / name).read_bytes(),
        write=write,
        delete=lambda name: (folder / name).unlink(),
        names=lambda: sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()),
        lock_out=lock_out,
        **{"wire": None, "environment": {}, "settings": {}, **more},
    )


@contextmanager
def local_store(work: Path) -> Iterator[Store]:
    folder = work / "store"

    @contextmanager
    def lock_out() -> Iterator[None]:
        folder.chmod(0o500)
        yield
        folder.chmod(0o700)

    yield _folder_store("local", folder, str(folder), lock_out)


@contextmanager
def ssh_store(work: Path, folder: Path | None = None) -> Iterator[Store]:
    """OpenSSH's own server, as the user who runs the tests, with keys made for this test alone."""
    if not Path(SSHD).exists():
        pytest.skip("no sshd on this machine; apt-get install openssh-server")
    folder = folder or work / "store"
    home = work / "home"
    (home / ".ssh").mkdir(parents=True)
    for name in ("host_key", "user_key", "other_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", work / name], check=True)
    keys = work / "authorized_keys"
    shutil.copyfile(work / "user_key.pub", keys)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it, and no package's service has made it here
    port = free_port()
    (work / "sshd_config").write_text(
        f"""ListenAddress {LOOPBACK}:{port}
HostKey {work}/host_key
AuthorizedKeysFile {keys}
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
Subsystem sftp internal-sftp
""",
        encoding="utf-8",
    )
    wire = Wire(port)
    host = (work / "host_key.pub").read_text(encoding="utf-8")
    (home / ".ssh" / "known_hosts").write_text(f"[{LOOPBACK}]:{wire.port} {host}", encoding="utf-8")

    @contextmanager
    def lock_out() -> Iterator[None]:
        shutil.copyfile(work / "other_key.pub", keys)
        yield
        shutil.copyfile(work / "user_key.pub", keys)

    server = subprocess.Popen([SSHD, "-D", "-e", "-f", work / "sshd_config"], stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        for line in server.stderr:  # it says when it listens
            if "Server listening" in line:
                break
        threading.Thread(target=server.stderr.read, daemon=True).start()
        wire.mend()
        yield _folder_store(
            "ssh",
            folder,
            f"ssh://{getpass.getuser()}@{LOOPBACK}:{wire.port}{folder}",
            lock_out,
            wire=wire,
            environment={"HOME": str(home)},
            settings={"keyfile": str(work / "user_key")},
        )
    finally:
        wire.cut()
        server.terminate()
        server.wait()


@contextmanager
def s3_store(work: Path) -> Iterator[Store]:
    """Moto's S3 server, which checks who asks: a user with a key of its own, made for this test."""
    server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    address = f"http://{LOOPBACK}:{port}"
    _forget(address)
    wire = Wire(port)
    options: dict[str, Any] = {
        "endpoint_url": address,
        "region_name": "us-east-1",
        "config": Config(retries={"max_attempts": 1}),
    }
    anyone = {"aws_access_key_id": "anyone", "aws_secret_access_key": "anyone"}
    iam = boto3.client("iam", **options, **anyone)
    iam.create_user(UserName="tester")
    policy = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
    iam.put_user_policy(UserName="tester", PolicyName="all", PolicyDocument=policy)
    key = iam.create_access_key(UserName="tester")["AccessKey"]
    s3 = boto3.client(
        "s3", **options, aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"]
    )
    s3.create_bucket(Bucket="store")
    requests.post(f"{address}/moto-api/reset-auth", data=b"0", timeout=10)  # from now on it checks

    def names() -> list[str]:
        return [one["Key"] for one in s3.list_objects_v2(Bucket="store").get("Contents", [])]

    def write(name: str, content: bytes) -> None:
        s3.put_object(Bucket="store", Key=name, Body=content)

    home = work / "home"
    environment = {
        "HOME": str(home),
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "2",
    }

    @contextmanager
    def lock_out() -> Iterator[None]:
        environment["AWS_SECRET_ACCESS_KEY"] = "wrong"
        yield
        environment["AWS_SECRET_ACCESS_KEY"] = key["SecretAccessKey"]

    home.mkdir()
    try:
        wire.mend()
        yield Store(
            kind="s3",
            url="s3://store/project",
            wire=wire,
            environment=environment,
            settings={"endpointurl": f"http://{LOOPBACK}:{wire.port}"},
            read=lambda name: bytes(s3.get_object(Bucket="store", Key=name)["Body"].read()),
            write=write,
            delete=lambda name: s3.delete_object(Bucket="store", Key=name) and None,
            names=names,
            lock_out=lock_out,
        )
    finally:
        wire.cut()
        _forget(address)
        server.stop()


def _forget(address: str) -> None:
    """Let moto forget its users and buckets, and check nobody: it keeps both for all servers of a process."""
    requests.post(f"{address}/moto-api/reset", timeout=10)
    requests.post(f"{address}/moto-api/reset-auth", data=b"inf", timeout=10)
