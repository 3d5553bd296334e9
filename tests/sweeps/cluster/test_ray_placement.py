"""Trials on fractions of declared GPUs: Ray hands out CUDA_VISIBLE_DEVICES without looking for hardware."""

import io
import os
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import tune
from rich.console import Console

from sweeps.cluster import joining
from sweeps.running.run import worker_of
from sweeps.running.tune.fixed_runs import FixedRuns
from sweeps.running.tune.retry import SayRetry
from sweeps.running.tune.tuning import tuner
from sweeps.search.config import SweepConfig
from sweeps.search.folder import InputError
from trainables.config.candidate import CandidateConfig
from trainables.trials.task import TrialTask

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
TOGETHER_S = 90  # 16 workers start one after another on two cores


def test_a_node_that_leaves_before_it_is_asked_for_the_storage_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = {"NodeID": "ab" * 28, "NodeManagerAddress": "10.0.0.9"}
    monkeypatch.setattr(joining, "_alive", lambda: [gone, *(node for node in ray.nodes() if node["Alive"])])
    joining._check_nodes(SweepConfig(name="probe").replace(out=tmp_path, cpus=2))
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(joining, "_sees", lambda path: False)
    with pytest.raises(InputError, match="does not see"):
        joining._check_nodes(SweepConfig(name="probe").replace(out=tmp_path, cpus=2))


def probe() -> type[tune.Trainable]:
    """A trainable that waits until `wanted` of its kind run at the same time, then tells its device."""

    class Probe(tune.Trainable):  # in a function: workers get it by value, this file is not on their path
        def step(self) -> dict[str, Any]:
            markers, wanted = self.config["task"].markers, self.config["task"].wanted
            (markers / self.trial_id).touch()
            until = time.monotonic() + TOGETHER_S
            while (together := len(list(markers.iterdir()))) < wanted and time.monotonic() < until:
                time.sleep(0.1)
            return {"together": together, "device": os.environ.get("CUDA_VISIBLE_DEVICES"), "done": True}

    return Probe


@pytest.mark.parametrize(
    ("gpus", "share", "at_once"),
    [(2, 0.5, 4), (3, 1.0, 3), pytest.param(4, 0.25, 16, marks=pytest.mark.nightly)],
    ids=["four halves on two cores", "three GPUs on two cores", "sixteen quarters on two cores"],
)
def test_all_trials_run_at_once_spread_evenly(tmp_path: Path, gpus: int, share: float, at_once: int) -> None:
    config = SweepConfig(name="probe").replace(out=tmp_path, gpus=gpus, gpus_per_trial=share, cpus=2)
    assert config.devices.concurrency == at_once
    markers = tmp_path / "markers"
    markers.mkdir()
    results = tuner(
        probe(),
        config,
        name="probe",
        callbacks=[],
        searcher=FixedRuns([{"task": SimpleNamespace(markers=markers, wanted=at_once, trial_number=0)}] * at_once),
        trials=at_once,
    ).fit()
    assert not results.errors
    metrics = [result.metrics or {} for result in results]
    assert [row["together"] for row in metrics] == [at_once] * at_once
    assert set(Counter(row["device"] for row in metrics).values()) == {at_once // gpus}


def hungry() -> type[tune.Trainable]:
    """A trainable that lacks memory as long as it shares its GPU."""

    class Hungry(tune.Trainable):
        def step(self) -> dict[str, Any]:
            import torch

            if not self.config["task"].alone:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return {"gpu": ray.get_runtime_context().get_assigned_resources()["GPU"], "done": True}

    return Hungry


def test_a_trial_out_of_memory_runs_again_with_a_gpu_of_its_own_and_it_is_said(tmp_path: Path) -> None:
    said = io.StringIO()
    images = SimpleNamespace(name="digits", image_size=32)
    candidate = CandidateConfig().resolve(images, device="cuda")
    config = SweepConfig(name="hungry").replace(out=tmp_path, gpus=4, gpus_per_trial=0.5, cpus=2)
    worker = worker_of(config)
    task = TrialTask(candidate=candidate, worker=worker, key="hungry/7", folder=tmp_path / "trial", trial_number=7)
    results = tuner(
        hungry(),
        config,
        name="hungry",
        callbacks=[SayRetry(Console(file=said, width=200))],
        searcher=FixedRuns([task.tune_config()]),
    ).fit()
    assert not results.errors
    assert [(row.metrics or {})["gpu"] for row in results] == [1.0]
    assert said.getvalue() == "trial 7  ran out of memory beside others; it runs again with a GPU of its own\n"
