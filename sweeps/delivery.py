"""Brings finished trials from their folders to MLflow, and their summary to the person who watches."""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from sweeps.progress import Progress
from trainables.records import EpochRecord, TrialRecord, read_trial, to_json, write_text
from trainables.stages.data import public_name
from trainables.tracking import Tracker
from trainables.trial import SHAPE_METRICS

EPOCH_FIELDS = tuple(field.name for field in dataclasses.fields(EpochRecord))
Score = Callable[[Mapping[str, float]], float]


class Delivery(tune.Callback):
    """Delivers a trial when Tune says it has ended. MLflow being away never stops a sweep."""

    def __init__(self, tracker: Tracker, score: Score, progress: Progress) -> None:
        self._tracker, self._score, self._progress = tracker, score, progress
        self._seen: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles callbacks; connections do not belong to that."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Mapping[str, Any], **info: Any
    ) -> None:
        """Tune: an epoch is over; kept for the record of a trial that will not write its own."""
        if "train_loss" in result:
            seen = self._seen.setdefault(trial.trial_id, {})
            seen[str(result["stage"]), int(result["epoch"])] = dict(result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has ended by itself."""
        folder = Path(trial.config["trial_dir"])
        reports = list(self._seen.pop(trial.trial_id, {}).values())
        if not (folder / "record.json").exists():
            seen = trial.last_result or {}
            reason = f"stopped after {seen.get('step')} of {seen.get('steps')} epochs"
            _write_record(trial, status="stopped", reason=reason, reports=reports)
        self._deliver(folder)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tune: a trial has failed for good; its folder says why."""
        reports = list(self._seen.pop(trial.trial_id, {}).values())
        _write_record(trial, status="failed", reason=_last_line(trial.error_file), reports=reports)
        self._deliver(Path(trial.config["trial_dir"]))

    def _deliver(self, folder: Path) -> None:
        record = read_trial(folder)
        scores = scores_of(record, self._score)
        label = str(record.trial_number)
        if record.status == "finished":
            self._progress.finished(label, record, scores["score"], summary(record, scores["score"]))
        else:
            self._progress.dropped(label, record)
        self._tracker.deliver(folder, scores)


def _write_record(trial: Trial, *, status: str, reason: str, reports: Sequence[Mapping[str, Any]] = ()) -> None:
    """The record of a trial that could not write its own: its epochs, and what was known of its shape before them."""
    folder = Path(trial.config["trial_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    params = trial.config["candidate"]
    record = TrialRecord(
        key=trial.config["key"],
        trial_number=trial.config["trial_number"],
        stage="candidate",
        status=status,
        reason=reason,
        params=params | {"dataset": public_name(params["dataset"])},
        metrics={name: reports[-1][name] for name in SHAPE_METRICS if name in reports[-1]} if reports else {},
        tags={},
        curve=tuple(EpochRecord(**{name: report[name] for name in EPOCH_FIELDS}) for report in reports),
        files=(),
        started=now - (trial.last_result or {}).get("time_total_s", 0.0),
        ended=now,
    )
    write_text(folder / "record.json", to_json(record))


def deliver_all(tracker: Tracker, folders: Iterable[Path], score: Score) -> int:
    """Deliver what is still in the outbox; returns how many trials MLflow did not take."""
    waiting = 0
    for folder in folders:
        if (folder / "record.json").exists():
            waiting += not tracker.deliver(folder, scores_of(read_trial(folder), score))
    return waiting


def scores_of(record: TrialRecord, score: Score) -> dict[str, float]:
    """The numbers the driver adds to a trial's own; none for a trial without a result."""
    return {"score": score(record.metrics)} if record.status == "finished" else {}


def summary(record: TrialRecord, score: float) -> str:
    """A finished trial on one line."""
    metrics, params = record.metrics, record.params
    speed = metrics["latency_p50_ms"] / metrics["reference_latency_p50_ms"]
    return (
        f"score {score:.2f}  val {100 * metrics['val_accuracy']:.2f} %  {metrics['latency_p50_ms']:.3f} ms"
        f" ({speed:.2f} x teacher)  {metrics['size_bytes'] / 1e6:.2f} MB   T={params['temperature']:g}"
        f" alpha={params['alpha']:g} {params['pruning_method']} {params['pruning_ratio']:g}"
        f" lr={params['learning_rate']:g}"
    )


def _last_line(error_file: str | None) -> str:
    if error_file is None or not Path(error_file).exists():
        return "its process died"
    lines = [line.strip() for line in Path(error_file).read_text(encoding="utf-8").splitlines() if line.strip()]
    return f"{lines[-1]} (all of it: {error_file})" if lines else "its process died"
