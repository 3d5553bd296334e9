"""The Tune trainables on their own: student and pruning, without a sweep around them."""

from pathlib import Path
from typing import Any

import pytest
from ray import tune

from sweeps.running.tune.fixed_runs import FixedRuns
from trainables.config.candidate import CandidateConfig
from trainables.trials.base import StageTrial
from trainables.trials.networks import PruneTrial, StudentTrial
from trainables.trials.task import TrialTask, Worker

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


def run(trainable: type[StageTrial], folder: Path, **changes: Any) -> dict[str, Any]:
    settings = {"train_limit": 120, "flip": False, "batch_size": 32, "latency_seconds": 0.1}
    epochs = {"teacher_epochs": 1, "student_epochs": 1, "recovery_epochs": 1}
    models = {"teacher_model": "alexnet", "student_model": "alexnet_small"}
    config = CandidateConfig().replace(**settings, **epochs, **models, **changes)
    worker = Worker(
        out=folder / "runs", data=config.data, data_dir=folder / "data", storage=None, device="cpu", threads=1
    )
    candidate = config.resolve(worker.workspace().dataset(), device="cpu")
    task = TrialTask(candidate=candidate, worker=worker, key="x/00000", folder=folder / "trial")
    (result,) = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=FixedRuns([task.tune_config()]), num_samples=1),
        run_config=tune.RunConfig(
            storage_path=str(folder / "tune"),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
    assert result.error is None
    return dict(result.metrics or {})


def test_pruning_and_student_share_what_they_have_in_common(tmp_path: Path) -> None:
    pruned = run(PruneTrial, tmp_path, pruning_ratio=0.5)
    assert pruned["final"] and pruned["key"].startswith("recovery/")
    assert pruned["training_iteration"] == 1 + 1 + 1 + 1  # teacher, student, recovery, the end
    student = run(StudentTrial, tmp_path)
    assert student["final"] and student["key"].startswith("student/")
    assert student["training_iteration"] == 1  # everything was in the store
    assert student["num_params"] == 763_306 > pruned["num_params"]
    assert student["macs"] > 2 * pruned["macs"]


def test_a_configuration_that_cannot_work_ends_the_trial_with_its_reason(tmp_path: Path) -> None:
    broken = run(StudentTrial, tmp_path, learning_rate=1e30)
    assert broken["final"] is False
    assert "diverged" in broken["invalid"]
