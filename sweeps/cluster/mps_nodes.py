"""The Multi-Process Service on every node of a cluster that has GPUs, for as long as a sweep has joined it."""

import logging
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sweeps.cluster.mps import CONTROL, STOP_S, MpsError, daemon_in

log = logging.getLogger(__name__)

LOOK_S = 10.0  # between two checks for new nodes
START_S = 120.0  # for a node to start a Ray process and the daemon


class Keeper:
    """An actor that keeps the daemon of its node; when Ray ends it with the sweep's job, the daemon ends, too."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def start(self, folder: str) -> str:
        """Start the daemon; empty, or why there is none."""
        try:
            self._stack.enter_context(daemon_in(Path(folder)))
        except MpsError as error:
            return str(error)
        return ""

    def stop(self) -> None:
        """Stop the daemon, and come back when it has ended."""
        self._stack.close()


@contextmanager
def daemon_on_nodes(folder: Path) -> Generator[None, None, None]:
    """Run a daemon at `client_environment(folder)` on every GPU node, including later ones, until the end.

    A trial on a node without a daemon, or before it is up, runs without: processes take turns on its GPU.

    Raises:
        MpsError: if a node that is up has no such daemon; the message names it.
    """
    keepers: dict[str, Any] = {}
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder, keepers, over), name="mps", daemon=True)
    try:
        _serve(folder, keepers)
        watcher.start()
        yield
    finally:
        over.set()
        if watcher.is_alive():
            watcher.join(LOOK_S)  # a node that starts its daemon now is not waited for: Ray ends that with the job
        stopping = [keeper.stop.remote() for keeper in list(keepers.values())]
        with suppress(RayError):  # a node that has left has taken its daemon along
            ray.get(stopping, timeout=2 * STOP_S)


def _watch(folder: Path, keepers: dict[str, Any], over: threading.Event) -> None:
    while not over.wait(LOOK_S):
        try:
            _serve(folder, keepers)
        except (MpsError, RayError) as error:
            log.warning("%s (its trials take turns on a GPU)", error)


def _serve(folder: Path, keepers: dict[str, Any]) -> None:
    """Start the daemon on every GPU node that has none yet."""
    for node in ray.nodes():
        name = node["NodeID"]
        if not node["Alive"] or not node["Resources"].get("GPU") or name in keepers:
            continue
        there = NodeAffinitySchedulingStrategy(name, soft=False)
        keepers[name] = ray.remote(num_cpus=0)(Keeper).options(scheduling_strategy=there).remote()
        try:
            reason = ray.get(keepers[name].start.remote(str(folder)), timeout=START_S)
        except GetTimeoutError:
            reason = f"mps=True: {CONTROL} did not start within {START_S:.0f} s."
        except RayError as error:
            log.debug("node %s left before it had a daemon: %s", node["NodeManagerAddress"], error)
            continue
        if reason:
            raise MpsError(f"node {node['NodeManagerAddress']}: {reason}")
