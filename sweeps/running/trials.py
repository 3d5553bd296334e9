"""Run the search itself: propose the missing trials of a sweep, run them, stop the hopeless, deliver the results."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher
from rich.console import Console

from sweeps.cluster.interrupts import Interrupted
from sweeps.display.progress import Progress
from sweeps.planning.budget import Deadline
from sweeps.running.outcome import headline, teacher_line
from sweeps.running.run import Run, worker_of
from sweeps.running.tune.delivery import Delivery
from sweeps.running.tune.recovery import TaskOf, fetch_late, recover, to_repeat, trial_dir
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

# Trials that fail with one reason before the sweep stops: the machine or the data, and not the configurations.
FAILED_ALIKE = 5
# Reports of a trial that trains nothing: its shape, and its end.
UNTRAINED_REPORTS = 2
# Of a command that runs until its time is over.
MOST_TRIALS = 10**6


class SweepSearcher(StudySearcher):
    """A searcher that runs some trials again, and ends early: at a deadline, or when every trial fails alike."""

    def __init__(
        self,
        study: optuna.Study,
        search: Search,
        *,
        task_of: TaskOf,
        score: Score,
        deadline: Deadline | None = None,
        again: Sequence[FrozenTrial] = (),
    ) -> None:
        """As in `StudySearcher`; the trials in `again` have ended in the study, which is not told of their new end."""
        super().__init__(study, search, tune_config=partial(_tune_config, task_of), score=score)
        self._config_of = partial(_tune_config, task_of)
        self._deadline, self._again, self._repeated = deadline, list(again), set[str]()
        self._alike: list[str] | None = []
        """The reasons of all trials so far; None once one has not failed."""
        self._slowest_s: float | None = None
        """Seconds of the slowest trial of this command that has trained to its end; None before there is one."""
        self.hopeless: str | None = None
        """Why every trial of this command has failed, if that is one reason; after that nothing is proposed."""

    def late(self) -> bool:
        """Whether it is too late to start another trial."""
        for_file = not self._again and self.next_is_file()
        return self._deadline is not None and self._deadline.over(for_file=for_file, trial_s=self._slowest_s)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """As in `StudySearcher`, but FINISHED when it is too late for another trial, or of no use.

        None while trials run whose networks may be written in other precisions, for which there is time.
        """
        if self.hopeless is not None or self.full is not None:
            return str(Searcher.FINISHED)
        if self.late():
            assert self._deadline is not None
            if self.running and not self._deadline.over(for_file=True):
                return None
            self.exhausted = True
            return str(Searcher.FINISHED)
        if not self._again:
            self.files_only = self._deadline is not None and self._deadline.over(trial_s=self._slowest_s)
            return super().suggest(trial_id)
        trial = self._again.pop(0)
        self._repeated.add(trial_id)
        return self._config_of(trial.number, trial.params)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """As in `StudySearcher`; then see whether all trials so far have failed for one reason."""
        found = result or {}
        reason = "its process died" if error else found.get("invalid")
        if found.get("final") and found.get("training_iteration", 0) > UNTRAINED_REPORTS:
            self._slowest_s = max(self._slowest_s or 0.0, found["time_total_s"])
        if self._alike is not None:
            self._alike = [*self._alike, str(reason)] if reason else None
        if self._alike and len(self._alike) >= FAILED_ALIKE and len(set(self._alike)) == 1:
            self.hopeless = self._alike[0]
        if trial_id not in self._repeated:
            super().on_trial_complete(trial_id, result, error)
            return
        self._repeated.remove(trial_id)
        if found.get("full"):
            self.full, self.exhausted = str(found["full"]), True

    @property
    def repeating(self) -> bool:
        """Whether trials that were to run again have not ended."""
        return bool(self._again or self._repeated)


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
    again = to_repeat(study, config, task_of, failed=run.retry_failed)
    searcher = SweepSearcher(study, search, task_of=task_of, score=run.score, deadline=run.deadline, again=again)
    # Before counting: a trial that had ended when its driver died must not be run again.
    recover(study, searcher, config, task_of, teacher=run.teacher, again=again)
    done = len(finished(study)) - len(again)
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
            trials=search.trials - done if run.deadline is None else MOST_TRIALS,  # plans are often too careful
            seconds=run.deadline.search_left() if run.deadline else None,
            deadline=run.deadline,
        ).fit()
    if searcher.full is not None:
        raise no_room(searcher.full)
    away = fetch_late(study, config, task_of)
    if away:
        text = f"{storage} does not answer: {away} finished trials are still there; the same command has them."
        console.print(text, style="yellow", soft_wrap=True)
    if searcher.hopeless is not None:
        text = f"Stopped: all trials of this command failed with one reason: {searcher.hopeless}"
        console.print(text, style="yellow", soft_wrap=True)
        console.print("When it is mended, the same command with --retry-failed tries them again.", soft_wrap=True)
        return _count_failed(config) + away
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


def _say_end(config: SweepConfig, study: optuna.Study, searcher: SweepSearcher, console: Console) -> None:
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
    if searcher.repeating:
        raise Interrupted
    if searcher.exhausted and not running and done >= wanted:
        console.print(f"The space holds no more than these {done} trials; widen a range to use the rest of the time.")
    if done < wanted:
        if not searcher.exhausted or running:  # neither the time nor the space was over
            raise Interrupted
        what = "raise a limit or widen a range" if searcher.ruled_out else "widen a range"
        console.print(f"The space holds no more than these {done} trials; {what} to have {wanted}.")


def _count_failed(config: SweepConfig) -> int:
    """How many trials failed: their configuration is invalid, or their process died for good."""
    records = (read_trial(trial) for trial in recorded(config.folder / TRIALS))
    return sum(record.status == "failed" for record in records)
