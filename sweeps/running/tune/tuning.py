"""The only place that builds a Tune `Tuner`."""

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from sweeps.cluster.interrupts import StoppableTuner, WatchRay
from sweeps.planning.budget import Deadline
from sweeps.running.tune.retry import RetryAlone
from sweeps.running.tune.upkeep import Allowance, StandStill, Timesheet
from sweeps.search.config import SweepConfig
from trainables.layout import SPENT, TUNE
from trainables.locks import node_lock
from trainables.trials.base import StageTrial
from trainables.trials.task import task_of

# How many times a trial's process may die without finishing an epoch; invalid configurations are run only once.
MAX_FAILURES = 3


class _Silent(tune.ProgressReporter):
    """Report nothing; in a notebook, Tune's own reporter clears the cell's output, `verbose` or not."""

    def should_report(self, trials: list[Trial], done: bool = False) -> bool:
        """Never."""
        return False

    def report(self, trials: list[Trial], done: bool, *sys_info: Any) -> None:
        """Nothing."""


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
    """A Tuner for one of our trainables, with Tune's own output and checkpoints off.

    Args:
        name: of the Tune run, below OUT/sweeps/NAME/tune.
        searcher: hands out Tune configs that carry a `Task`; in a param space Tune would replace it by a placeholder.
        resources: of a trial, if they differ from those of the sweep's trials.
        seconds: time limit of this run; None if there is none.
        deadline: of the whole sweep; the time spent of its budget is saved.
    """
    scheduler = scheduler or RetryAlone(alone=config.devices.alone_after_running_out)
    ours: list[tune.Callback] = [Allowance(MAX_FAILURES), WatchRay()]
    if config.devices.address is None:
        ours.append(StandStill(node_lock(config.places.out.resolve())))
    if deadline is not None:
        ours.append(Timesheet(config.folder / SPENT, deadline))
    return StoppableTuner(
        tune.with_resources(trainable, dict(resources or config.devices.resources)),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=trials,
            time_budget_s=seconds,
            max_concurrent_trials=config.devices.concurrency,
            reuse_actors=True,  # a new process would import torch and load the images again
            trial_dirname_creator=lambda trial: f"{task_of(trial).trial_number}-{trial.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str((config.folder / TUNE).resolve()),
            callbacks=[*callbacks, *ours],
            verbose=0,  # the sweep has a display of its own
            progress_reporter=_Silent(),
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            # Stages checkpoint to the store themselves; a Tune checkpoint would be a second copy.
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
        ),
    )
