"""Trials on fractions of declared GPUs: Ray hands out CUDA_VISIBLE_DEVICES without looking for hardware."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import tune

from sweeps.config import SweepConfig
from sweeps.launch import tuner

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TOGETHER_S = 90  # 16 workers start one after another on two cores


@pytest.fixture(scope="module", autouse=True)
def four_gpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, num_gpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def probe() -> type[tune.Trainable]:
    """A trainable that waits until `wanted` of its kind run at the same time, then tells its device."""

    class Probe(tune.Trainable):  # in a function: workers get it by value, this file is not on their path
        def step(self) -> dict[str, Any]:
            markers, wanted = Path(self.config["markers"]), self.config["wanted"]
            (markers / self.trial_id).touch()
            until = time.monotonic() + TOGETHER_S
            while (together := len(list(markers.iterdir()))) < wanted and time.monotonic() < until:
                time.sleep(0.1)
            return {"together": together, "device": os.environ.get("CUDA_VISIBLE_DEVICES"), "done": True}

    return Probe


@pytest.mark.parametrize(
    ("gpus", "share", "at_once"),
    [(4, 0.25, 16), (3, 1.0, 3)],
    ids=["sixteen quarters on two cores", "three GPUs on two cores"],
)
def test_all_trials_run_at_once_spread_evenly(tmp_path: Path, gpus: int, share: float, at_once: int) -> None:
    config = SweepConfig(name="probe", out=tmp_path, gpus=gpus, gpus_per_trial=share, cpus=2)
    assert config.concurrency == at_once
    markers = tmp_path / "markers"
    markers.mkdir()
    results = tuner(
        probe(),
        config,
        resources=config.resources,
        callbacks=[],
        name="probe",
        param_space={"markers": str(markers), "wanted": at_once},
        trials=at_once,
    ).fit()
    assert not results.errors
    metrics = [result.metrics or {} for result in results]
    assert [row["together"] for row in metrics] == [at_once] * at_once
    assert set(Counter(row["device"] for row in metrics).values()) == {at_once // gpus}
