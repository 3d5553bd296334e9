"""The Multi-Process Service on the nodes of a cluster: real Ray, declared GPUs, a program of the daemon's name."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from sweeps.cluster import mps_nodes
from sweeps.cluster.joining import ray_for
from sweeps.cluster.mps import CONTROL, MpsError
from sweeps.search.config import SweepConfig
from tests.sweeps.cluster.mps_control import fake_control

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.nightly]
PATIENCE_S = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def cluster(folder: Path) -> Iterator[Cluster]:
    """A head without GPUs and a node with one."""
    with pytest.MonkeyPatch.context() as patch:
        fake_control(folder, patch)
        patch.setattr(mps_nodes, "LOOK_S", 0.2)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
        nodes.add_node(num_cpus=1, num_gpus=1)
        yield nodes
        nodes.shutdown()


@pytest.fixture(autouse=True)
def fresh(folder: Path) -> None:
    """Whatever the test before has left."""
    for name in ("broken", "calls"):
        (folder / name).unlink(missing_ok=True)


def sweep(cluster: Cluster, folder: Path) -> SweepConfig:
    return SweepConfig(name="x").replace(out=folder, address=cluster.address, gpus=2, cpus=2, mps=True)


def calls(folder: Path, wanted: int) -> list[str]:
    """What the daemons were asked, as soon as it is that many lines."""
    until = time.monotonic() + PATIENCE_S
    while True:
        lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
        if len(lines) >= wanted or time.monotonic() > until:
            return lines
        time.sleep(0.1)


def test_a_node_on_which_it_does_not_start_is_named(cluster: Cluster, folder: Path) -> None:
    (folder / "broken").touch()
    why = f"^node [0-9.]+: mps=True: {CONTROL} does not start: no device$"
    with pytest.raises(MpsError, match=why), ray_for(sweep(cluster, folder)):
        pass
    assert not ray.is_initialized()


def test_every_gpu_node_has_it_later_ones_too_and_none_keeps_it(cluster: Cluster, folder: Path) -> None:
    with ray_for(sweep(cluster, folder)):
        pipe = ray.get(ray.remote(num_gpus=1)(lambda: os.environ["CUDA_MPS_PIPE_DIRECTORY"]).remote())
        assert calls(folder, 1) == [f"start {pipe}"]
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
        cluster.add_node(num_cpus=1, num_gpus=1)
        assert calls(folder, 2) == [f"start {pipe}"] * 2
    assert calls(folder, 4) == [f"start {pipe}"] * 2 + [f"quit {pipe}"] * 2


def test_kill_9_of_the_driver_ends_it_on_the_nodes(cluster: Cluster, folder: Path) -> None:
    script = f"""
import time
from pathlib import Path
from sweeps.cluster.joining import ray_for
from sweeps.search.config import SweepConfig
config = SweepConfig(name="x").replace(address={cluster.address!r}, gpus=2, cpus=2, mps=True)
with ray_for(config.replace(out=Path({str(folder)!r}))):
    print("on", flush=True)
    time.sleep(600)
"""
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    assert driver.stdout.readline() == "on\n"
    driver.kill()
    driver.communicate()
    started = len(cluster.list_all_nodes()) - 1
    assert sorted(line.split()[0] for line in calls(folder, 2 * started)) == ["quit"] * started + ["start"] * started
