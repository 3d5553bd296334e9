"""Callbacks of Tune that deliver finished trials to MLflow and print their summaries."""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from sweeps.cluster.ray_private import failures
from sweeps.display.progress import Progress
from sweeps.running.tune.retry import last_failure, reason_in
from trainables.config.candidate import TEACHER_ITSELF
from trainables.files import write_text
from trainables.layout import RECORD, has_record
from trainables.records.encoding import to_json
from trainables.records.latency import doubt, teacher_ratio
from trainables.records.stages import EpochRecord
from trainables.records.trial import TrialRecord, read_trial
from trainables.tracking.deliveries import Score, scores_of
from trainables.tracking.tracker import Tracker
from trainables.tracking.transport import fetch
from trainables.trials.base import SHAPE_METRICS
from trainables.trials.task import Task, task_of

log = logging.getLogger(__name__)

EPOCH_FIELDS = tuple(field.name for field in dataclasses.fields(EpochRecord))


class Delivery(tune.Callback):
    """Deliver each trial to MLflow when Tune reports its end; an unreachable MLflow never stops a sweep.

    Nothing is delivered while a trial measures on this node.
    """

    def __init__(self, tracker: Tracker, score: Score, progress: Progress, storage: str | None = None) -> None:
        self._tracker, self._score, self._progress, self._storage = tracker, score, progress, storage
        self._seen: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles callbacks, and connections cannot be pickled."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Tune: an epoch is over. Keep its report, in case the trial cannot write its own record."""
        if "train_loss" in result:
            # By stage and epoch: a trial that restarts may report the same epoch twice.
            seen = self._seen.setdefault(trial.trial_id, {})
            seen[str(result["stage"]), int(result["epoch"])] = dict(result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has ended without an error. Write the record of one that was stopped early, and deliver."""
        task, seen = task_of(trial), trial.last_result or {}
        folder = task.folder
        reports = list(self._seen.pop(trial.trial_id, {}).values())
        if self._storage is not None and not fetch_record(task, self._storage) and left_record(seen):
            return  # the storage does not answer: fetched and delivered when the sweep ends or resumes
        if not has_record(folder):
            if "full" in seen:  # its disk was full: the next command runs it again
                return
            reason = f"after {seen.get('step')} of {seen.get('steps')} epochs"
            write_record(task, status="stopped", reason=reason, seconds=_seconds(trial), reports=reports)
        with task.worker.node_lock().shared():
            self._deliver(folder)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has failed for good. Write its record, with the reason, and deliver it."""
        reports = list(self._seen.pop(trial.trial_id, {}).values())
        task, reason = task_of(trial), reason_in(last_failure(trial))
        if trial.error_file:
            reason += f" ({failures(trial)} attempts; all of it: {trial.error_file})"
        write_record(task, status="failed", reason=reason, seconds=_seconds(trial), reports=reports)
        with task.worker.node_lock().shared():
            self._deliver(task.folder)

    def _deliver(self, folder: Path) -> None:
        record = read_trial(folder)
        scores = scores_of(record, self._score)
        label = str(record.trial_number)
        if record.status == "finished":
            self._progress.finished(label, record, scores["score"], summary(record, scores["score"]))
        else:
            self._progress.dropped(label, record)
        self._tracker.deliver(folder, scores)


def fetch_record(task: Task, storage: str) -> bool:
    """Fetch a trial's record from the storage unless it is on this machine; returns whether it is there now."""
    try:
        return fetch(task.folder, task.address, storage, fits=task.fits)
    except OSError as error:
        log.warning("trial %s was not fetched: %s", task.key, error)
        return False


def left_record(result: Mapping[str, Any]) -> bool:
    """Whether a trial whose last report is `result` wrote its own record: it finished, was invalid or infeasible."""
    return bool(result.get("final")) or "invalid" in result or any(name.startswith("excess") for name in result)


def _seconds(trial: Trial) -> float:
    return float((trial.last_result or {}).get("time_total_s", 0.0))


def write_record(
    task: Task, *, status: str, reason: str, seconds: float, reports: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write the record of a trial that could not write its own: its epochs, and the measured shape if it is known."""
    task.folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    record = task.record(
        status=status,
        reason=reason,
        metrics={name: reports[-1][name] for name in SHAPE_METRICS if name in reports[-1]} if reports else {},
        curve=tuple(EpochRecord(**{name: report[name] for name in EPOCH_FIELDS}) for report in reports),
        started=now - seconds,
        ended=now,
    )
    write_text(task.folder / RECORD, to_json(record))


def summary(record: TrialRecord, score: float) -> str:
    """A finished trial on one line."""
    metrics, params = record.metrics, record.params
    times = f"{teacher_ratio(metrics):.2f} x teacher"
    return (
        f"score {score:.2f}  val {100 * metrics['val_accuracy']:.2f} %  {metrics['latency_p50_ms']:.3f} ms"
        f" ({', '.join(filter(None, (times, doubt(record.tags))))})  {metrics['size_bytes'] / 1e6:.2f} MB"
        f"   {_recipe(params)}"
    )


def _recipe(params: Mapping[str, Any]) -> str:
    """`resnet20 structured 0.3 int8_ptq T=4 alpha=0.9 lr=0.001`, with the loss where it is not the default."""
    what = f"{params['student_model']} {params['pruning_method']} {params['pruning_ratio']:g} {params['precision']}"
    if params["student_model"] == TEACHER_ITSELF and not params["pruning_ratio"]:
        return f"{TEACHER_ITSELF} uncut {params['precision']}"
    taught = f"T={params['temperature']:g} alpha={params['alpha']:g}" if params["alpha"] else "alpha=0"
    loss = "" if params["kd_loss"] in ("kd", "none") else f"{params['kd_loss']} "
    return f"{what} {loss}{taught} lr={params['learning_rate']:g}"
