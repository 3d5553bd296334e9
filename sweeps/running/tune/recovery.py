"""Repair what a dead driver left undone: records that the study does not know, ended trials without a record."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from sweeps.running.tune.delivery import write_record
from sweeps.search.config import SweepConfig
from sweeps.search.folder import InputError
from sweeps.search.sampling.searcher import StudySearcher, finished
from trainables.layout import DELIVERED, RECORD, has_record, trial_folder
from trainables.records.trial import TrialRecord, read_trial
from trainables.tracking.transport import fetch, withdraw
from trainables.trials.task import Task

PATIENCE_S = 60.0  # how long to retry a storage that does not answer

FAILED_RECORD = f"{RECORD}.failed"  # of a trial that is run again: if its driver dies, the next one knows

TaskOf = Callable[[int, Mapping[str, Any]], Task]
"""(Trial number, parameters) -> task."""


def recover(
    study: optuna.Study,
    searcher: StudySearcher,
    config: SweepConfig,
    task_of: TaskOf,
    *,
    teacher: TrialRecord,
    again: Sequence[FrozenTrial] = (),
) -> None:
    """Make the study and the trial folders agree again.

    A trial that had written its record when the driver died is reported to the study instead of being run again. A
    trial that has ended in the study but has no record (the driver stopped it, then died) gets one.

    Args:
        again: trials that will be run again, and so write their records.

    Raises:
        InputError: if the storage does not answer.
    """
    repeated = {trial.number for trial in again}
    for number in searcher.orphans():
        task = task_of(number, study.trials[number].params)
        task.clear_folder()
        if _has_record(config, task):
            searcher.settle(number, _result(read_trial(task.folder), config, teacher))
    for trial in finished(study):
        # A trial without parameters was never handed out: nothing ran, so there is nothing to record.
        missing = trial.number not in repeated and not _has_record(config, task_of(trial.number, trial.params))
        if trial.params and missing:
            reason = str(trial.user_attrs.get("reason", "its record was lost"))
            status = "failed" if trial.state == optuna.trial.TrialState.FAIL else "stopped"
            write_record(task_of(trial.number, trial.params), status=status, reason=reason, seconds=0.0)


def to_repeat(study: optuna.Study, config: SweepConfig, task_of: TaskOf, *, failed: bool) -> list[FrozenTrial]:
    """The trials that must run again under their numbers: finished ones without a record, and failed ones if asked for.

    Their stages are in the store as far as they got. Records of failed ones are renamed.

    Raises:
        InputError: if the storage does not answer.
    """
    again = []
    for trial in finished(study):
        folder = trial_dir(config, trial.number)
        if not trial.params:
            continue
        task = task_of(trial.number, trial.params)
        if not _has_record(config, task):
            lost = trial.state == optuna.trial.TrialState.COMPLETE or (folder / FAILED_RECORD).exists()
        else:
            lost = failed and read_trial(folder).status == "failed"
            if lost:
                _withdraw(config, task)
                (folder / RECORD).replace(folder / FAILED_RECORD)
        if lost:
            (folder / DELIVERED).unlink(missing_ok=True)  # it is delivered again
            again.append(trial)
    return again


def _withdraw(config: SweepConfig, task: Task) -> None:
    """Take a record back from the storage; otherwise it would be fetched again as that of the next attempt.

    Raises:
        InputError: if the storage does not answer.
    """
    if (storage := config.places.storage) is None:
        return
    try:
        withdraw(task.address, storage)
    except OSError as error:
        raise InputError(f"--storage {storage}: {error}; run the same command when it answers.") from error


def trial_dir(config: SweepConfig, number: int) -> Path:
    """The outbox folder of a trial on the driver."""
    return trial_folder(config.folder, number)


def fetch_late(study: optuna.Study, config: SweepConfig, task_of: TaskOf) -> int:
    """Fetch records that the storage did not deliver when their trials ended; returns how many are still missing."""
    ended = [trial for trial in finished(study) if trial.params]
    missing = [trial for trial in ended if not has_record(trial_dir(config, trial.number))]
    with suppress(InputError):  # it does not answer: each further record would wait just as long
        for trial in missing:
            _has_record(config, task_of(trial.number, trial.params))
    return sum(not has_record(trial_dir(config, trial.number)) for trial in missing)


def _has_record(config: SweepConfig, task: Task) -> bool:
    """Whether a trial has written a record; one in the storage is fetched.

    Raises:
        InputError: if the storage does not answer: a record that cannot be looked for must not count as lost.
    """
    storage = config.places.storage
    if storage is None:
        return has_record(task.folder)
    try:
        return fetch(task.folder, task.address, storage, fits=task.fits, patience_s=PATIENCE_S)
    except OSError as error:
        raise InputError(f"--storage {storage}: {error}; run the same command when it answers.") from error


def _result(record: TrialRecord, config: SweepConfig, teacher: TrialRecord) -> dict[str, Any]:
    """The trial's last report to Tune, rebuilt from its record."""
    if record.status == "failed":
        return {"invalid": record.reason, "final": False}
    if record.status == "stopped":
        return {"final": False}
    trained = "val_accuracy" in record.metrics
    known = {"teacher_val_accuracy": teacher.metrics["val_accuracy"]} if trained else {}
    excess = config.limits.excess({**record.metrics, **known}) if record.metrics else {}
    return {**record.metrics, "excess": excess, "final": trained}
