"""Nodes that are real to Ray on one machine: each has a network, an address and a disk of its own (Linux, root)."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

READY_S = 90.0
HEAD = "10.77.0.1"
SERVICES = "10.77.0.2"
"""Where tracking server and S3 answer, so that one link cuts everybody off them."""
STORE_BYTES = 100_000_000
START = """
set -e
mkdir -p "$PRIVATE/ray" "$PRIVATE/disk/shared" "$TEMP" "$FOLDER/shared"
mount --bind "$PRIVATE/ray" "$TEMP"
mount --bind "$FOLDER/shared" "$PRIVATE/disk/shared"
mount --rbind "$PRIVATE/disk" "$FOLDER"
exec "$@"
"""
"""In a mount namespace: Ray's folder and FOLDER become empty ones that no other node sees, but for FOLDER/shared."""


def may_make_nodes() -> bool:
    """Whether this process may make bridges, network namespaces and mounts, and `ip` is installed."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"may{os.getpid() % 100_000}"
    tries = f"ip link add {name} type bridge && ip netns add {name} && ip netns exec {name} mount --bind /mnt /mnt"
    fine = subprocess.run(["sh", "-c", tries], capture_output=True).returncode == 0
    for words in (["netns", "delete", name], ["link", "delete", name]):
        subprocess.run(["ip", *words], capture_output=True, check=False)
    return fine


class Node:
    """One namespace on the bridge, with everything that runs in it."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", name, "master", _BRIDGE, "up")
        for words in ("link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up"):
            _ip("-n", name, *words.split())
        _ip("-n", name, "route", "add", "default", "via", HEAD)

    def inside(self, words: list[str]) -> list[str]:
        """The command that runs `words` here."""
        return ["ip", "netns", "exec", self.name, *words]

    def pids(self) -> list[int]:
        """Every process that runs here."""
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=False)
        return [int(pid) for pid in done.stdout.split()]

    def link(self, state: str) -> None:
        """Plug the cable in (`up`) or pull it (`down`)."""
        _ip("link", "set", self.name, state)

    def kill(self) -> None:
        """kill -9 of everything here, then the node is gone: no packet says goodbye."""
        self.link("down")
        while pids := self.pids():  # a process that was being started is in the next list
            subprocess.run(["kill", "-9", *map(str, pids)], check=False, capture_output=True)
        _ip("netns", "delete", self.name)
        subprocess.run(["ip", "link", "delete", self.name], check=False, capture_output=True)


_BRIDGE = f"tz{os.getpid() % 100_000}"


class PlainNodes:
    """Where namespaces may not be made: one raylet per core beside the head, all on this host.

    They share Ray's folder, and one that dies takes the code shipped to the others with it, so none is killed.
    """

    services = None

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        from ray.cluster_utils import Cluster

        (folder / "shared").mkdir(parents=True, exist_ok=True)
        os.environ.update(environment)  # raylets and their workers inherit it
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        self._nodes: list[Any] = []
        self.mark = Path(self._cluster.head_node.get_session_dir_path()).name

    def add_node(self) -> None:
        """One more raylet of one core."""
        self._nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES))

    def pids(self) -> list[int]:
        """Every process of these raylets: workers are their children."""
        raylets = [info.process.pid for node in self._nodes for info in node.all_processes["raylet"]]
        words = [part for pid in raylets for part in ("-P", str(pid))]
        done = subprocess.run(["pgrep", *words], capture_output=True, text=True, check=False) if words else None
        return [int(pid) for pid in done.stdout.split()] if done else []

    def close(self) -> None:
        """Leave nothing behind."""
        self._cluster.shutdown()


class Network:
    """A bridge with a Ray head (no cores) on this side, and nodes of one core each on the other."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        (folder / "shared").mkdir(parents=True, exist_ok=True)
        self.temp = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets have short paths
        self._private = Path(tempfile.mkdtemp(prefix="nodes-"))
        self._environment = environment
        self._made = self._starts = 0
        self.services: Node | None = None
        self.nodes: list[Node] = []
        self.address, self.mark = f"{HEAD}:6390", self.temp.name
        self._head: subprocess.Popen[bytes] | None = None
        try:
            self._begin()
        except BaseException:  # nobody else takes bridge and namespaces down
            self.close()
            raise

    def _begin(self) -> None:
        if f" {HEAD}/" in subprocess.run(["ip", "-o", "addr"], capture_output=True, text=True, check=True).stdout:
            raise RuntimeError(f"{HEAD} is taken on this machine, by another such network; end it or remove its bridge")
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{HEAD}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        self.services = Node(f"{_BRIDGE}s", SERVICES)
        self._start_head()

    def _start_head(self) -> None:
        self._head = self._ray(["--head", "--port=6390", "--include-dashboard=false", "--num-cpus=0"], HEAD, [])
        self._wait()

    def start_again(self) -> None:
        """A new cluster with as many nodes, in place of one whose GCS has died."""
        count = len(self.nodes)
        for node in list(self.nodes):
            self.kill_node(node)
        self._kill_head()
        self._start_head()
        for _ in range(count):
            self.add_node()

    def add_node(self) -> Node:
        """One more node of one core; returns when the cluster knows it."""
        self._made += 1
        node = Node(f"{_BRIDGE}n{self._made}", f"10.77.0.{10 + self._made % 240}")
        private = str(self._private / str(self._made))
        prefix = node.inside(
            ["env", f"PRIVATE={private}", f"TEMP={self.temp}", f"FOLDER={self.folder}", "sh", "-c", START, "sh"]
        )
        self.nodes.append(node)
        self._ray([f"--address={self.address}", "--num-cpus=1"], node.address, prefix)
        self._wait()
        return node

    def pids(self) -> list[int]:
        """Every process of the nodes."""
        return [pid for node in self.nodes for pid in node.pids()]

    def kill_node(self, node: Node) -> None:
        """kill -9 of a node with all its processes."""
        node.kill()
        self.nodes.remove(node)

    def close(self) -> None:
        """Leave nothing behind."""
        for node in [*self.nodes, *([self.services] if self.services else [])]:
            node.kill()
        self._kill_head()
        subprocess.run(["ip", "link", "delete", _BRIDGE], check=False, capture_output=True)
        for folder in (self.temp, self._private):
            shutil.rmtree(folder, ignore_errors=True)

    def head_pids(self) -> list[int]:
        """Every process of the head."""
        mine = subprocess.run(["pgrep", "-f", str(self.temp)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in mine.stdout.split() if int(pid) not in self.pids()]

    def _kill_head(self) -> None:
        if self._head is not None:
            self._head.kill()
            self._head.wait()
        mine = subprocess.run(["pgrep", "-f", str(self.temp)], capture_output=True, text=True, check=False)
        subprocess.run(["kill", "-9", *mine.stdout.split()], check=False, capture_output=True)

    def _ray(self, words: list[str], address: str, prefix: list[str]) -> "subprocess.Popen[bytes]":
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--block",
            f"--node-ip-address={address}",
            f"--object-store-memory={STORE_BYTES}",
        ]
        command += [f"--temp-dir={self.temp}"] if "--head" in words else []
        self._starts += 1
        with (self.folder / "ray.log").open("ab") as log:
            return subprocess.Popen([*prefix, *command, *words], stdout=log, stderr=log, env=self._environment)

    def _wait(self) -> None:
        """Return when everything that was started is up."""
        until = time.monotonic() + READY_S
        while (self.folder / "ray.log").read_bytes().count(b"Ray runtime started") < self._starts:
            if time.monotonic() > until:
                raise TimeoutError(f"a node was not up after {READY_S:.0f} s; see {self.folder / 'ray.log'}")
            time.sleep(0.2)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Cut:
    """A cable, pulled once for a while."""

    def __init__(self, link: Node, what: str, seconds: float) -> None:
        self._link, self._what, self._seconds = link, what, seconds
        self._since: float | None = None
        self._over = False

    def follow(self) -> None:
        """Pull it at the first call, plug it in at the first one after its time."""
        if self._over:
            return
        if self._since is None:
            self._since = time.monotonic()
            self._link.link("down")
            print(f"the link to {self._what} is down", flush=True)
        elif time.monotonic() - self._since > self._seconds:
            self.mend()

    def mend(self) -> None:
        """Plug it in, if it is out."""
        if self._since is None or self._over:
            return
        self._link.link("up")
        self._over = True
        print(f"the link to {self._what} is up again after {time.monotonic() - self._since:.0f} s", flush=True)
