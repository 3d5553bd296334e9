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

from chaos_nodes import SERVICES, Network, PlainNodes, may_make_nodes

from sweeps.cluster.ray_settings import SETTINGS

BUCKET = "chaos"
READY_S = 120.0


class World:
    """Everything that sweeps need besides their command; gone when the block is left."""

    def __init__(self, folder: Path, *, nodes: int, s3: bool) -> None:
        self.folder, self.count, self._s3 = folder, nodes, s3
        self._server: subprocess.Popen[bytes] | None = None
        self._bucket: subprocess.Popen[bytes] | None = None
        self._port, self._s3_port = free_port(), free_port()
        self.separate = may_make_nodes()
        self._host = SERVICES if self.separate else "127.0.0.1"
        self.tracking_uri = f"http://{self._host}:{self._port}"
        self.environment = (
            os.environ
            | SETTINGS
            | {
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_ENDPOINT_URL": f"http://{self._host}:{self._s3_port}",
                "no_proxy": f"127.0.0.1,{SERVICES}",
                "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            }
        )
        os.environ.update(self.environment)  # the checks ask the same servers

    def __enter__(self) -> "World":
        self.nodes = (Network if self.separate else PlainNodes)(self.folder, self.environment)
        self.address = self.nodes.address
        try:
            if self._s3:
                self._start_s3()
            for _ in range(self.count):
                self.nodes.add_node()
            self.start_server()
        except BaseException:  # nobody else takes namespaces and servers down
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave nothing behind."""
        self.kill_server()
        if self._bucket is not None:
            os.killpg(self._bucket.pid, signal.SIGKILL)
            self._bucket.wait()
        self.nodes.close()

    def storage(self, number: int) -> str:
        """What the nodes share in one sweep."""
        if self._s3:
            return f"s3://{BUCKET}/{number}"
        folder = self.folder / "shared" / str(number)
        folder.mkdir(exist_ok=True)
        return str(folder)

    def kill_node(self) -> bool:
        """kill -9 of the first node that runs a trial, with all its processes; False if none does."""
        if isinstance(self.nodes, PlainNodes):
            return False
        for node in self.nodes.nodes:
            if any(map(is_trial, node.pids())):
                self.nodes.kill_node(node)
                return True
        return False

    def ray_pids(self) -> list[int]:
        """Every process of the nodes, and those of the head that hold the cluster together."""
        head = self.nodes.head_pids() if isinstance(self.nodes, Network) else []
        return [*self.nodes.pids(), *filter(is_gcs, head)]

    def replace_dead_nodes(self) -> None:
        """One more node for each that was killed or has lost its raylet."""
        if not isinstance(self.nodes, Network):
            return
        for node in list(self.nodes.nodes):
            if not any(map(is_raylet, node.pids())):
                self.nodes.kill_node(node)
        while len(self.nodes.nodes) < self.count:
            self.nodes.add_node()

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
        words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--host", self._host]
        words += ["--artifacts-destination", str(self.folder / "artifacts"), "--port", str(self._port)]
        words += ["--workers", "1", "--allowed-hosts", f"localhost:*,127.0.0.1:*,{SERVICES}:*"]
        environment = self.environment | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._server = self._serve(words, environment, "server.log")
        wait_for_answer(f"{self.tracking_uri}/health")

    def _start_s3(self) -> None:
        """moto's server with one bucket."""
        where = f"'{self._host}', {self._s3_port}"
        code = f"import time; from moto.server import ThreadedMotoServer as S; S({where}).start(); time.sleep(1e6)"
        self._bucket = self._serve([sys.executable, "-c", code], self.environment, "s3.log")
        wait_for_answer(f"http://{self._host}:{self._s3_port}/moto-api/")
        request = urllib.request.Request(f"http://{self._host}:{self._s3_port}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()

    def _serve(self, words: list[str], environment: dict[str, str], log: str) -> "subprocess.Popen[bytes]":
        if self.nodes.services is not None:
            words = self.nodes.services.inside(words)
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)


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


def is_raylet(pid: int) -> bool:
    """Whether a process is a node's scheduler."""
    return _program(pid).endswith(b"/raylet/raylet")


def is_gcs(pid: int) -> bool:
    """Whether a process is the one that knows the whole of a Ray."""
    return _program(pid).endswith(b"/gcs_server")


def is_agent(pid: int) -> bool:
    """Whether a process is one that a raylet starts and needs."""
    return _program(pid) in (b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")


def _program(pid: int) -> bytes:
    return command_line(pid).partition(b"\0")[0]


def command_line(pid: int) -> bytes:
    """Empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def processes() -> list[int]:
    """All of this machine."""
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
