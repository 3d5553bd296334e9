"""One Tune run of our trainables: the only `Tuner`."""

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from sweeps.cluster.interrupts import StoppableTuner
from sweeps.planning.budget import Deadline
from sweeps.running.tune.delivery import Allowance, Timesheet
from sweeps.running.tune.retry import RetryAlone
from sweeps.search.config import SweepConfig
from trainables.layout import SPENT, TUNE
from trainables.trials.base import StageTrial
from trainables.trials.task import task_of

MAX_FAILURES = 3
"""A trial's process may die this many times before an epoch is over; invalid configurations are run once."""


def tuner(
    trainable: type[StageTrial[Any]],
    config: SweepConfig,
    *,
    name: str,
    callbacks: list[tune.Callback],
    searcher: Searcher,
    scheduler: RetryAlone | None = None,
    resources: Mapping[str, float] | None = None,
    trials: int = 1,
    seconds: float | None = None,
    deadline: Deadline | None = None,
) -> tune.Tuner:
    """A Tuner for one of our trainables, its own output and checkpoints off.

    Args:
        name: of the Tune run, below OUT/sweeps/NAME/tune.
        searcher: hands out Tune configs that carry a `Task`; Tune itself would put placeholders in their place.
        resources: of a trial, where they are not those of the sweep's trials.
        seconds: after which nothing more is run.
        deadline: of the whole sweep; what is spent of its budget is written down.
    """
    scheduler = scheduler or RetryAlone(alone=config.devices.alone_after_running_out)
    timesheet = [Timesheet(config.folder / SPENT, deadline)] if deadline is not None else []
    return StoppableTuner(
        tune.with_resources(trainable, dict(resources or config.devices.resources)),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=trials,
            time_budget_s=seconds,
            max_concurrent_trials=config.devices.concurrency,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{task_of(trial).trial_number}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str((config.folder / TUNE).resolve()),
            callbacks=[*callbacks, Allowance(MAX_FAILURES), *timesheet],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
