"""The Tune trainable on its own, without a sweep or a Ray around it: what Tune calls is called here."""

from pathlib import Path
from typing import Any

import pytest

from trainables.config.candidate import CandidateConfig
from trainables.trials.base import StageTrial
from trainables.trials.candidate import CandidateTrial
from trainables.trials.task import TrialTask, Worker

pytestmark = pytest.mark.slow


def run(trainable: type[StageTrial], folder: Path, **changes: Any) -> dict[str, Any]:
    settings = {"train_limit": 120, "flip": False, "batch_size": 32, "latency_seconds": 0.1, "latency_max_attempts": 1}
    epochs = {"teacher_epochs": 1, "student_epochs": 1, "recovery_epochs": 1}
    models = {"teacher_model": "alexnet", "student_model": "alexnet_small"}
    config = CandidateConfig().replace(**settings, **epochs, **models, **changes)
    worker = Worker(
        out=folder / "runs", data=config.data, data_dir=folder / "data", storage=None, device="cpu", threads=1
    )
    candidate = config.resolve(worker.workspace().dataset(), device="cpu")
    task = TrialTask(candidate=candidate, worker=worker, key="x/00000", folder=folder / "trial")
    trial = trainable(config=task.tune_config())
    try:
        while not (result := trial.train())["done"]:
            pass
    finally:
        trial.stop()
    return result


def test_a_step_is_an_epoch_and_what_is_in_the_store_takes_none(tmp_path: Path) -> None:
    first = run(CandidateTrial, tmp_path, pruning_ratio=0.5)
    assert first["final"]
    assert first["training_iteration"] == 1 + 1 + 1 + 1 + 1  # teacher, shape, student, recovery, the end
    assert 0.4 < first["achieved_channel_ratio"] < 0.6 < first["achieved_params_ratio"] < 0.8
    dense = run(CandidateTrial, tmp_path, pruning_ratio=0.0)
    assert dense["training_iteration"] == 1 + 1 + 1  # shape, recovery, the end: teacher and student were there
    assert dense["num_params"] == 763_306 > first["num_params"]
    assert dense["achieved_channel_ratio"] == dense["achieved_macs_ratio"] == 0
    assert first["achieved_params_ratio"] == pytest.approx(1 - first["num_params"] / dense["num_params"])
    assert first["achieved_macs_ratio"] == pytest.approx(1 - first["macs"] / dense["macs"])


def test_a_configuration_that_cannot_work_ends_the_trial_with_its_reason(tmp_path: Path) -> None:
    broken = run(CandidateTrial, tmp_path, learning_rate=1e30)
    assert broken["final"] is False
    assert "diverged" in broken["invalid"]
