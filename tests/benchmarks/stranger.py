"""What another user of the machine can try on ports, sockets, files and processes; `other_user.py` lets one do it."""

import contextlib
import http.client
import importlib
import os
import pkgutil
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

NOBODY = 65534
PATIENCE_S = 20.0
PAGES = (
    *("GET /", "GET /metrics", "GET /logs/", "GET /api/version", "GET /api/v0/tasks", "GET /api/v0/logs"),
    *("GET /api/jobs/", "POST /api/jobs/", "GET /api/cluster_status", "GET /api/local_raylet_healthz"),
    *("POST /get_or_create_runtime_env", "POST /delete_runtime_env_if_possible", "POST /get_runtime_envs_info"),
    *("GET /api/2.0/mlflow/experiments/search?max_results=9", "GET /health"),
)
"""Of Ray's dashboard, its agents and of MLflow."""
HIDDEN = ("environ", "mem", "maps", "fd", "cwd", "exe", "io", "auxv", "map_files")
SECRET = "a secret stands in it"
DATA, HEADERS, RESET, SETTINGS, GOAWAY = 0, 1, 3, 4, 7
END_STREAM, END_HEADERS, ACK = 1, 4, 1


@dataclass(frozen=True, kw_only=True)
class Try:
    """One attempt and what came of it."""

    what: str
    done: bool
    """Whether it worked."""
    said: str


def become() -> None:
    """Make this process another user's, who has nothing but what every user has."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.environ.clear()
    os.chdir("/")


def ask_rpc(port: str, secrets: Sequence[str]) -> list[Try]:
    """Call every gRPC method that Ray knows, with an empty message: without a token and with a wrong one."""
    return [
        Try(
            what="gRPC", done=knock(port, method, token), said=f"{method} answered {'a wrong' if token else 'no'} token"
        )
        for method in methods()
        for token in ("", "0" * 64)
    ]


def ask_pages(port: str, secrets: Sequence[str]) -> list[Try]:
    """Ask for pages and post requests over HTTP."""
    return [_page(port, *page.split()) for page in PAGES]


def connect(address: str, secrets: Sequence[str]) -> list[Try]:
    """Connect to a UNIX socket, by path or abstract."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        try:
            client.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        except OSError as error:
            return [Try(what="socket", done=False, said=str(error))]
    return [Try(what="socket", done=True, said="connected")]


def find(port: str, secrets: Sequence[str]) -> list[Try]:
    """A UDP port takes what anybody sends: that there is one is enough."""
    return [Try(what="UDP", done=True, said=f"port {port} is open")]


def look(path: str, secrets: Sequence[str]) -> list[Try]:
    """Read and write a file; list a folder and make a file in it."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:  # it was there a moment ago
        return []
    except OSError as error:
        return [Try(what="read", done=False, said=str(error)), Try(what="write", done=False, said=str(error))]
    if stat.S_ISDIR(mode):
        return [
            _attempt("list", lambda: f"{len([*Path(path).iterdir()])} entries"),
            _attempt("write", lambda: _make(path)),
        ]
    if stat.S_ISSOCK(mode):
        return connect(path, secrets)
    read = _attempt("read", lambda: _contents(path, secrets))
    write = _attempt("write", lambda: os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)) or "opened")
    return [read, write, *_told(read)]


def enter(pid: str, secrets: Sequence[str]) -> list[Try]:
    """Signal a process, and read its command line, its environment, memory and open files."""
    folder = f"/proc/{pid}"
    if not Path(folder).exists():
        return []
    line = _attempt("command line", lambda: _contents(f"{folder}/cmdline", secrets))
    hidden = [_attempt("process", lambda name=name: _inside(f"{folder}/{name}", secrets)) for name in HIDDEN]
    return [line, *_told(line), *hidden, _attempt("process", lambda: os.kill(int(pid), 0) or "may be signalled")]


def knock(port: str, method: str, token: str) -> bool:
    """Whether a gRPC server answers an empty message with data, rather than with an error alone (RFC 9113, 7541)."""
    headers = {":method": "POST", ":scheme": "http", ":path": f"/{method}", ":authority": f"127.0.0.1:{port}"}
    headers |= {"content-type": "application/grpc", "te": "trailers"}
    if token:
        headers["authorization"] = f"Bearer {token}"
    block = b"".join(b"\0" + _text(name) + _text(value) for name, value in headers.items())
    try:
        with socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE_S) as client:
            client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(SETTINGS, 0, 0, b""))
            client.sendall(_frame(HEADERS, END_HEADERS, 1, block) + _frame(DATA, END_STREAM, 1, bytes(5)))
            with client.makefile("rb") as answer:
                return _has_data(answer)
    except TimeoutError:
        return True  # it keeps the call, where it should have refused it
    except OSError:
        return False


@cache
def methods() -> tuple[str, ...]:
    """Every gRPC method of every service that Ray has."""
    import ray.core.generated as generated

    names = [module.name for module in pkgutil.iter_modules(generated.__path__) if module.name.endswith("_pb2")]
    files = [importlib.import_module(f"ray.core.generated.{name}").DESCRIPTOR for name in names]
    services = [service for file in files for service in file.services_by_name.values()]
    return tuple(f"{service.full_name}/{method.name}" for service in services for method in service.methods)


def _has_data(answer: BinaryIO) -> bool:
    while len(head := answer.read(9)) == 9:
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        answer.read(length)
        if kind == DATA and length:
            return True
        if kind in (RESET, GOAWAY) or (kind == HEADERS and flags & END_STREAM):
            return False
    return False


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def _text(word: str) -> bytes:
    assert len(word) < 127, word
    return bytes([len(word)]) + word.encode()


def _page(port: str, verb: str, path: str) -> Try:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE_S)
    with contextlib.closing(connection):
        try:
            connection.request(verb, path, body=b"" if verb == "POST" else None)
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            return Try(what="HTTP", done=False, said=f"{type(error).__name__}")
    return Try(what="HTTP", done=answer.status < 400, said=f"{verb} {path}: {answer.status}")


def _attempt(what: str, action: Callable[[], object]) -> Try:
    try:
        return Try(what=what, done=True, said=str(action()))
    except OSError as error:
        return Try(what=what, done=False, said=str(error))


def _contents(path: str, secrets: Sequence[str]) -> str:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # a pipe would wait for a writer
        read = file.read()
    return SECRET if any(secret.encode() in read for secret in secrets) else f"{len(read)} bytes"


def _told(read: Try) -> list[Try]:
    return [Try(what="secret", done=read.done and read.said == SECRET, said=read.said)] if read.done else []


def _inside(path: str, secrets: Sequence[str]) -> str:
    if Path(path).is_symlink():
        return str(Path(path).readlink())
    return str([*Path(path).iterdir()]) if Path(path).is_dir() else _contents(path, secrets)


def _make(folder: str) -> str:
    path = Path(folder, ".stranger")
    path.touch(exist_ok=False)
    path.unlink()
    return "a file was made"
