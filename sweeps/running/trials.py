"""Run the search itself: propose the missing trials of a sweep, run them, stop the hopeless, deliver the results."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher
from rich.console import Console

from sweeps.cluster.interrupts import Interrupted
from sweeps.display.progress import Progress
from sweeps.planning.budget import Deadline
from sweeps.running.outcome import headline, teacher_line
from sweeps.running.run import Run, worker_of
from sweeps.running.tune.delivery import Delivery
from sweeps.running.tune.recovery import TaskOf, fetch_late, recover, trial_dir
from sweeps.running.tune.retry import SayRetry
from sweeps.running.tune.stopper import FrontStopper
from sweeps.running.tune.tuning import tuner
from sweeps.search.config import STOPPERS, Search, SweepConfig
from sweeps.search.folder import InputError, no_room
from sweeps.search.sampling.searcher import StudySearcher, finished, open_study
from sweeps.search.space import tidy
from trainables.layout import JOURNAL, RUNGS, TRIALS, recorded
from trainables.records.stages import DatasetRecord
from trainables.records.trial import TrialRecord, read_trial
from trainables.store.results import store_below
from trainables.tracking.deliveries import Score
from trainables.trials.candidate import CandidateTrial
from trainables.trials.task import TrialTask


class InTime(StudySearcher):
    """A searcher that proposes no trial which would end after the deadline, if there is one."""

    def __init__(
        self, study: optuna.Study, search: Search, *, task_of: TaskOf, score: Score, deadline: Deadline | None
    ) -> None:
        super().__init__(study, search, tune_config=partial(_tune_config, task_of), score=score)
        self._deadline = deadline

    def late(self) -> bool:
        """Whether it is too late to start another trial."""
        return self._deadline is not None and self._deadline.over()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """As in `StudySearcher`, but FINISHED when it is too late for another trial."""
        self.exhausted = self.exhausted or self.late()
        return str(Searcher.FINISHED) if self.late() else super().suggest(trial_id)


def run_trials(run: Run) -> int:
    """Run the missing trials of a sweep; returns how many of all its trials failed or could not be fetched.

    Raises:
        InputError: if what an earlier driver left cannot be read.
        Interrupted: if Ctrl-C or SIGTERM ended it early.
        NoRoomError: if a disk is full.
    """
    config, console = run.config, run.console
    search, storage = config.search, config.places.storage
    study = open_study(config.folder / JOURNAL, config.name, search)
    # Not of the whole run, whose connections Tune cannot pickle.
    task_of = partial(_task, config, run.dataset, run.teacher, run.sweep_id)
    searcher = InTime(study, search, task_of=task_of, score=run.score, deadline=run.deadline)
    # Before counting: a trial that had ended when its driver died must not be run again.
    recover(study, searcher, config, task_of, teacher=run.teacher)
    done = len(finished(study))
    if done >= search.trials:
        more = "" if search.sampler == "grid" else f"; --trials {done + 10} adds some"
        console.print(f"Sweep {config.name} has all its {done} trials{more}.", soft_wrap=True)
        return _count_failed(config)
    progress = _progress(run, done)
    with progress:
        tuner(
            CandidateTrial,
            config,
            name="trials",
            callbacks=[progress, Delivery(run.tracker, run.score, progress, storage), SayRetry(console)],
            searcher=searcher,
            scheduler=_stopper(config),
            trials=search.trials - done,
            seconds=run.deadline.search_left() if run.deadline else None,
            deadline=run.deadline,
        ).fit()
    if searcher.full is not None:
        raise no_room(searcher.full)
    away = fetch_late(study, config, task_of)
    if away:
        text = f"{storage} does not answer: {away} finished trials are still there; the same command has them."
        console.print(text, style="yellow", soft_wrap=True)
    _say_end(config, study, searcher, console)
    return _count_failed(config) + away


def _tune_config(task_of: TaskOf, number: int, params: Mapping[str, Any]) -> dict[str, Any]:
    task = task_of(number, params)
    task.clear_folder()
    return task.tune_config()


def _task(
    config: SweepConfig,
    dataset: DatasetRecord,
    teacher: TrialRecord,
    sweep_id: str,
    number: int,
    params: Mapping[str, Any],
) -> TrialTask:
    """The task of a trial of the search; the only place that turns proposed parameters into a configuration."""
    folder = trial_dir(config, number)
    return TrialTask(
        candidate=config.search.base.replace(**tidy(params)).resolve(dataset, device=config.devices.device),
        worker=worker_of(config),
        key=f"{config.name}/{folder.name}",
        folder=folder.resolve(),
        trial_number=number,
        limits=config.limits,
        sweep_id=sweep_id,
        teacher_val_accuracy=teacher.metrics["val_accuracy"],
        num_val=dataset.num_val,
    )


def _stopper(config: SweepConfig) -> FrontStopper | None:
    rule = STOPPERS[config.search.stopper]
    alone = config.devices.alone_after_running_out
    try:
        return FrontStopper(rule, config.rates, config.folder / RUNGS, alone=alone) if rule else None
    except ValueError as error:
        raise InputError(str(error)) from error


def _progress(run: Run, done: int) -> Progress:
    config = run.config
    return Progress(
        run.console,
        gpus=config.devices.gpus > 0,
        phase="trials",
        title=headline(config),
        trials=config.search.trials,
        done=done,
        concurrency=config.devices.concurrency,
        teacher=teacher_line(config, run.teacher),
        folder=config.folder,
        store=store_below(config.places.out, config.places.storage),
        stops=STOPPERS[config.search.stopper] is not None,
        until=run.deadline.search_left if run.deadline else None,
    )


def _say_end(config: SweepConfig, study: optuna.Study, searcher: InTime, console: Console) -> None:
    """Print why there are fewer trials than asked for, if there are.

    Raises:
        Interrupted: if a signal ended the search.
    """
    if searcher.ruled_out:
        console.print(f"{searcher.ruled_out} proposals cost no trial: a narrower shape is over the limits already.")
    done, wanted = len(finished(study)), config.search.trials
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    if searcher.late():
        if running:
            text = f"The time is over; trials that were cut off: {len(running)}. The same command goes on with them."
            console.print(text, soft_wrap=True)
        return
    if done < wanted:
        if not searcher.exhausted or running:  # neither the time nor the space was over
            raise Interrupted
        what = "raise a limit or widen a range" if searcher.ruled_out else "widen a range"
        console.print(f"The space holds no more than these {done} trials; {what} to have {wanted}.")


def _count_failed(config: SweepConfig) -> int:
    """How many trials failed: their configuration is invalid, or their process died for good."""
    records = (read_trial(trial) for trial in recorded(config.folder / TRIALS))
    return sum(record.status == "failed" for record in records)
