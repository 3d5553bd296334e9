"""The only MLflow writer: delivers what trials left in their folders, each exactly once.

Runs on the driver. Trials write records and files to disk (the outbox) and never talk to MLflow, so a tracking
server that is away costs nothing but a later delivery.
"""

import json
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from trainables.records import EpochRecord, TrialRecord, read_trial, to_json, write_text

# One call to a dead server costs 246 s with MLflow's defaults (7 retries with back-off).
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")

import mlflow
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

DELIVERED = "delivered.json"
RETRY_AFTER_S = 30.0
BATCH_METRICS = 900  # MLflow takes 1,000 metrics a call
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "infeasible": "KILLED", "failed": "FAILED"}


class TrackingError(Exception):
    """The MLflow store cannot be used; the message says why, on one line."""


class Tracker:
    """One sweep in MLflow: a parent run, and a child run for every delivered trial."""

    def __init__(self, uri: str, *, experiment: str, sweep: str, sweep_id: str, artifacts: Path) -> None:
        """Open the store and find or make experiment and parent run.

        Args:
            uri: tracking server or `sqlite:///PATH`.
            experiment: one for a task, such as `cifar10`.
            sweep: name of the parent run.
            sweep_id: unique; names may repeat on a shared server.
            artifacts: folder for the artifacts of a new experiment in a local store.

        Raises:
            TrackingError: if the store cannot be reached or used.
        """
        self._away_until = 0.0
        self._sweep = sweep
        local = not uri.startswith(("http://", "https://"))
        try:
            if uri.startswith("sqlite:///"):
                _write_ahead(Path(uri.removeprefix("sqlite:///")))
            self._client = mlflow.MlflowClient(uri)
            found = self._client.get_experiment_by_name(experiment)
            location = artifacts.resolve().as_uri() if local else None
            self.experiment_id = (
                found.experiment_id if found else self._client.create_experiment(experiment, artifact_location=location)
            )
            self.parent_id = self._find(f"tags.sweep_id = '{sweep_id}'") or self._create(
                sweep, {"kind": "sweep", "sweep": sweep, "sweep_id": sweep_id, "status": "running"}
            )
        except (MlflowException, sqlite3.Error, OSError) as error:
            raise TrackingError(str(error).splitlines()[0]) from error

    def deliver(self, folder: Path, scores: Mapping[str, float]) -> bool:
        """Bring one trial folder's record, curves and files to MLflow, unless that has been done.

        Args:
            folder: holds `record.json` and the files it names.
            scores: numbers that the driver adds to the trial's own.

        Returns:
            False if MLflow is away; the folder stays in the outbox and `deliver` may be called again.
        """
        if self._has(folder):
            return True
        if time.monotonic() < self._away_until:
            return False
        try:
            self._deliver(folder, read_trial(folder), scores)
        except (MlflowException, OSError):
            self._away_until = time.monotonic() + RETRY_AFTER_S
            return False
        return True

    def try_again(self) -> None:
        """Forget that MLflow was away a moment ago: the next delivery is tried at once."""
        self._away_until = 0.0

    def sweep_artifacts(self, paths: Iterable[Path]) -> None:
        """Put files on the parent run; like all that follows, raises `TrackingError` if MLflow is away."""
        with _told():
            for path in paths:
                self._client.log_artifact(self.parent_id, str(path))

    def sweep_metric(self, name: str, value: float, *, step: int) -> None:
        """A point of a curve on the parent run."""
        with _told():
            self._client.log_metric(self.parent_id, name, value, step=step)

    def mark_front(self, members: Collection[str], others: Collection[str]) -> None:
        """Tag runs, by id, with `pareto = true` or `false`."""
        with _told():
            for run_id in members:
                self._client.set_tag(run_id, "pareto", "true")
            for run_id in others:
                self._client.set_tag(run_id, "pareto", "false")

    def close(self, status: str) -> None:
        """End the parent run: `finished` or `interrupted`."""
        with _told():
            self._client.set_tag(self.parent_id, "status", status)
            self._client.set_terminated(self.parent_id, "FINISHED" if status == "finished" else "KILLED")

    def _deliver(self, folder: Path, record: TrialRecord, scores: Mapping[str, float]) -> None:
        run_id = self._find(
            f"tags.key = '{record.key}' AND tags.`mlflow.parentRunId` = '{self.parent_id}'"
        ) or self._create(record.key.rpartition("/")[2], _tags(record) | {"sweep": self._sweep}, started=record.started)
        params = [Param(name, str(value)) for name, value in record.params.items()]
        self._client.log_batch(run_id, params=params)
        ended = int(record.ended * 1000)
        final = {**record.metrics, **scores}
        metrics = [Metric(name, float(value), ended, 0) for name, value in final.items()]
        metrics += [point for epoch in record.curve for point in _curve(epoch, ended)]
        for start in range(0, len(metrics), BATCH_METRICS):
            self._client.log_batch(run_id, metrics=metrics[start : start + BATCH_METRICS])
        for name in record.files:
            self._client.log_artifact(run_id, str(folder / name))
        if record.reason:
            self._client.set_tag(run_id, "reason", record.reason)
        self._client.set_terminated(run_id, STATUS[record.status], end_time=ended)
        write_text(folder / DELIVERED, to_json({"run_id": run_id, "parent_id": self.parent_id}))

    def _has(self, folder: Path) -> bool:
        """Whether the folder's record has been delivered to this store; another one may have got it before."""
        marker = folder / DELIVERED
        return marker.exists() and bool(json.loads(marker.read_text("utf-8")).get("parent_id") == self.parent_id)

    def _find(self, where: str) -> str | None:
        runs = self._client.search_runs([self.experiment_id], where, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _create(self, name: str, tags: Mapping[str, str], *, started: float | None = None) -> str:
        parent = {} if tags["kind"] == "sweep" else {"mlflow.parentRunId": self.parent_id}
        run = self._client.create_run(
            self.experiment_id,
            run_name=name,
            start_time=int((started or time.time()) * 1000),
            tags={**tags, **parent},
        )
        return str(run.info.run_id)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        raise TrackingError(str(error).splitlines()[0]) from error


def _tags(record: TrialRecord) -> dict[str, str]:
    tags = {"kind": "trial", "key": record.key, "stage": record.stage, "status": record.status}
    if record.trial_number is not None:
        tags["trial_number"] = str(record.trial_number)
    tags |= record.tags
    return tags | ({"control": "teacher"} if record.stage == "teacher" else {})


def _curve(epoch: EpochRecord, time_ms: int) -> list[Metric]:
    values = {
        "train_loss": epoch.train_loss,
        "train_accuracy": epoch.train_accuracy,
        "val_loss": epoch.val_loss,
        "val_accuracy": epoch.val_accuracy,
        "learning_rate": epoch.learning_rate,
    }
    return [Metric(f"{epoch.stage}_{name}", value, time_ms, epoch.epoch) for name, value in values.items()]


def _write_ahead(database: Path) -> None:
    """Switch a SQLite file to write-ahead logging: 8 ms instead of 24 ms a batch, and readers do not block."""
    database.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(database, timeout=20)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
