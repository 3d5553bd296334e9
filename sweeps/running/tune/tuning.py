"""One Tune run of our trainables: the only `Tuner`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from sweeps.cluster.interrupts import StoppableTuner
from sweeps.planning.budget import Deadline, TimedSweep
from sweeps.running.tune.delivery import Allowance, Timesheet
from sweeps.running.tune.retry import RetryAlone
from sweeps.search.config import SweepConfig
from trainables.layout import SPENT, TUNE
from trainables.trials.base import StageTrial

MAX_FAILURES = 3
"""So often may a trial's process die before an epoch is over; invalid configurations are run once."""


def tuner(
    trainable: type[StageTrial],
    config: SweepConfig,
    *,
    resources: Mapping[str, float],
    callbacks: list[tune.Callback],
    name: str,
    param_space: Mapping[str, Any] | None = None,
    searcher: Searcher | None = None,
    scheduler: RetryAlone | None = None,
    trials: int = 1,
) -> tune.Tuner:
    """A Tuner for one of our trainables, its own output and checkpoints off."""
    scheduler = scheduler or RetryAlone()
    scheduler.alone = config.alone if 0 < config.share < 1 and config.gpus else None
    return StoppableTuner(
        tune.with_resources(trainable, dict(resources)),
        param_space=dict(param_space) if param_space is not None else None,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=trials,
            time_budget_s=_seconds(config.deadline, name) if isinstance(config, TimedSweep) else None,
            max_concurrent_trials=config.concurrency if searcher else None,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config.get('trial_number')}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str((config.folder / TUNE).resolve()),
            callbacks=[*callbacks, Allowance(MAX_FAILURES), *_timesheet(config)],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )


def _timesheet(config: SweepConfig) -> list[tune.Callback]:
    return [Timesheet(config.folder / SPENT, config.deadline)] if isinstance(config, TimedSweep) else []


def _seconds(deadline: Deadline, name: str) -> float:
    return deadline.search_left() if name == "trials" else deadline.left()


def place(config: SweepConfig, folder: Path, *, number: int | None) -> dict[str, Any]:
    """The part of a Tune config that says where a trial works."""
    return {
        "out": str(config.out.resolve()),
        "data_dir": str(config.data_dir.resolve()),
        "storage": config.storage,
        "device": config.device,
        "memory_share": min(1.0, config.share),
        "threads": config.threads,
        "trial_number": number,
        "trial_dir": str(folder.resolve()),
        "key": f"{config.name}/{folder.name}",
    }
