"""A small world of its own for `chaos.py`: raylets, a tracking server, an S3, and the right to kill any of them."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import sweeps.ray_settings  # noqa: F401  # before Ray

# isort: split
from ray.cluster_utils import Cluster

BUCKET = "chaos"
READY_S = 120.0
STORE_BYTES = 100_000_000


class World:
    """Everything that sweeps need besides their command; gone when the block is left."""

    def __init__(self, folder: Path, *, nodes: int, s3: bool) -> None:
        self.folder, self._count, self._s3 = folder, nodes, s3
        self._nodes: list[Any] = []
        self._server: subprocess.Popen[bytes] | None = None
        self._port, self._s3_port = free_port(), free_port()
        self.tracking_uri = f"http://127.0.0.1:{self._port}"
        self.environment = os.environ | {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._s3_port}",
            "no_proxy": "127.0.0.1",
        }

    def __enter__(self) -> "World":
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ.update(self.environment)  # raylets and their workers inherit it
        self._bucket = start_s3(self._s3_port) if self._s3 else None
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        self.session = Path(self._cluster.head_node.get_session_dir_path()).name
        for _ in range(self._count):
            self.add_node()
        self.start_server()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cluster.shutdown()
        self.kill_server()
        if self._bucket is not None:
            self._bucket.kill()
            self._bucket.wait()

    def storage(self, number: int) -> str:
        """What the nodes share in one sweep."""
        if self._s3:
            return f"s3://{BUCKET}/{number}"
        folder = self.folder / f"shared-{number}"
        folder.mkdir(exist_ok=True)
        return str(folder)

    def add_node(self) -> None:
        """One more raylet with one core."""
        self._nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))

    def kill_node(self) -> bool:
        """kill -9 of the first raylet that runs a trial, with all its processes; False if none does."""
        for node in self._nodes:
            (raylet,) = (info.process.pid for info in node.all_processes["raylet"])
            family = [raylet, *descendants(raylet)]
            if any(map(is_trial, family)):
                kill(family)
                self._nodes.remove(node)
                self._cluster.remove_node(node, allow_graceful=False)
                return True
        return False

    def kill_trial(self) -> bool:
        """kill -9 of one trial's process; False if there is none."""
        running = [pid for node in self._nodes for pid in self._family(node) if is_trial(pid)]
        kill(running[:1])
        return bool(running)

    def kill_server(self) -> bool:
        """kill -9 of the tracking server and its workers."""
        if self._server is None:
            return False
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        self._server = None
        return True

    def start_server(self) -> None:
        """The tracking server as README.md has it; waits until it answers."""
        database = f"sqlite:///{self.folder / 'mlflow.db'}"
        words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--host", "127.0.0.1"]
        words += ["--artifacts-destination", str(self.folder / "artifacts"), "--port", str(self._port)]
        words += ["--workers", "1", "--allowed-hosts", "localhost:*,127.0.0.1:*"]
        with (self.folder / "server.log").open("ab") as log:
            environment = self.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self._server = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)
        wait_for_answer(f"{self.tracking_uri}/health")

    def _family(self, node: Any) -> list[int]:
        return [pid for info in node.all_processes["raylet"] for pid in descendants(info.process.pid)]


def start_s3(port: int) -> "subprocess.Popen[bytes]":
    """moto's server with one bucket."""
    code = f"from moto.server import ThreadedMotoServer as S; S('127.0.0.1', {port}).start(); input()"
    server = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_answer(f"http://127.0.0.1:{port}/moto-api/")
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{BUCKET}", method="PUT")
    urllib.request.urlopen(request, timeout=10).close()
    return server


def wait_for_answer(url: str) -> None:
    """Return when a server answers."""
    until = time.monotonic() + READY_S
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def kill(pids: list[int]) -> None:
    """kill -9; those that are gone already are none the worse."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def is_trial(pid: int) -> bool:
    """Whether a process is a worker that runs a trainable's step."""
    line = command_line(pid)
    return b"ray::" in line and b".train" in line


def command_line(pid: int) -> bytes:
    """Empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def processes() -> list[int]:
    """All of this machine."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def descendants(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    children: dict[int, list[int]] = {}
    for other in processes():
        try:
            parent = int(Path(f"/proc/{other}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(other)
    found, queue = [], [pid]
    while queue:
        new = children.get(queue.pop(), [])
        found += new
        queue += new
    return found
