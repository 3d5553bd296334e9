"""What a driver that died in between left undone: records the study does not know, trials that have no record."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna

from sweeps.config import SweepConfig
from sweeps.delivery import collected, write_record
from sweeps.searcher import StudySearcher, finished
from trainables.records import TrialRecord, read_trial

TrialConfig = Callable[[int, Mapping[str, Any]], dict[str, Any]]


def recover(
    study: optuna.Study,
    searcher: StudySearcher,
    config: SweepConfig,
    trial_config: TrialConfig,
    *,
    teacher: TrialRecord,
) -> None:
    """Make study and trial folders agree again.

    A trial that had left its record when the driver died is told to the study instead of being run again. One that
    the study knows to have ended, but that has no record (the driver stopped it, and died), gets one.
    """
    for number in searcher.orphans():
        if _has_record(config, number):
            searcher.settle(number, _result(read_trial(trial_dir(config, number)), config, teacher))
    for trial in finished(study):
        if trial.params and not _has_record(config, trial.number):
            reason = str(trial.user_attrs.get("reason", "its record was lost"))
            status = "failed" if trial.state == optuna.trial.TrialState.FAIL else "stopped"
            write_record(trial_config(trial.number, trial.params), status=status, reason=reason, seconds=0.0)


def trial_dir(config: SweepConfig, number: int) -> Path:
    """The outbox folder of a trial on the driver."""
    return config.folder / "trials" / f"{number:05}"


def _has_record(config: SweepConfig, number: int) -> bool:
    folder = trial_dir(config, number)
    if config.storage is not None:
        collected(folder, f"{config.name}/{folder.name}", config.storage)
    return (folder / "record.json").exists()


def _result(record: TrialRecord, config: SweepConfig, teacher: TrialRecord) -> dict[str, Any]:
    """What the trial reported last."""
    if record.status == "failed":
        return {"invalid": record.reason, "final": False}
    if record.status == "stopped":
        return {"final": False}
    trained = "val_accuracy" in record.metrics
    known = {"teacher_val_accuracy": teacher.metrics["val_accuracy"]} if trained else {}
    excess = config.limits.excess({**record.metrics, **known}) if record.metrics else {}
    return {**record.metrics, "excess": excess, "final": trained}
