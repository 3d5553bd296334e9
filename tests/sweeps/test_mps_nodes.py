"""The Multi-Process Service on the nodes of a cluster: real Ray, declared GPUs, a program of the daemon's name."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from mps_control import control
from ray.cluster_utils import Cluster

from sweeps import mps_nodes
from sweeps.cluster import ray_for
from sweeps.config import SweepConfig
from sweeps.mps import CONTROL, MpsError

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PATIENCE_S = 60


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without GPUs and a node with one."""
    control(tmp_path, monkeypatch)
    monkeypatch.setattr(mps_nodes, "LOOK_S", 0.2)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    nodes.add_node(num_cpus=1, num_gpus=1)
    yield nodes
    nodes.shutdown()


def sweep(cluster: Cluster, folder: Path) -> SweepConfig:
    return SweepConfig(name="x", out=folder, address=cluster.address, gpus=2, cpus=2, mps=True)


def calls(folder: Path, wanted: int) -> list[str]:
    """What the daemons were asked, as soon as it is that many lines."""
    until = time.monotonic() + PATIENCE_S
    while True:
        lines = (folder / "calls").read_text().splitlines()
        if len(lines) >= wanted or time.monotonic() > until:
            return lines
        time.sleep(0.1)


def test_every_gpu_node_has_it_later_ones_too_and_none_keeps_it(cluster: Cluster, tmp_path: Path) -> None:
    with ray_for(sweep(cluster, tmp_path)):
        pipe = ray.get(ray.remote(num_gpus=1)(lambda: os.environ["CUDA_MPS_PIPE_DIRECTORY"]).remote())
        assert calls(tmp_path, 1) == [f"start {pipe}"]
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
        cluster.add_node(num_cpus=1, num_gpus=1)
        assert calls(tmp_path, 2) == [f"start {pipe}"] * 2
    assert calls(tmp_path, 4) == [f"start {pipe}"] * 2 + [f"quit {pipe}"] * 2


def test_a_node_on_which_it_does_not_start_is_named(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    why = f"^node [0-9.]+: mps=True: {CONTROL} does not start: no device$"
    with pytest.raises(MpsError, match=why), ray_for(sweep(cluster, tmp_path)):
        pass
    assert not ray.is_initialized()
