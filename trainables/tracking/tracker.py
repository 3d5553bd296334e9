"""The only MLflow writer: deliver the records in the trials' folders, each exactly once.

Runs on the driver. Trials write records and files to disk (the outbox) and never talk to MLflow, so a tracking server
that is down only delays their delivery.
"""

import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from trainables.config.escaping import hide_password
from trainables.config.mlflow_settings import WRITING, mlflow_settings
from trainables.files import sha256, write_text
from trainables.layout import DELIVERED, RECORD
from trainables.records.encoding import to_json
from trainables.records.trial import TrialRecord, read_delivered, read_trial
from trainables.tracking.local_store import opening
from trainables.tracking.registry import register
from trainables.tracking.run_fields import STATUS, curve, run_name, trial_tags

RETRY_AFTER_S = 30.0  # no delivery is tried for so long after a server did not answer
BATCH_METRICS = 800  # MLflow accepts 1,000 metrics, parameters and tags per call
BATCH_PARAMS = 100
REASON_LETTERS = 4000  # MLflow limits the length of a tag


class TrackingError(Exception):
    """The MLflow store cannot be used; the message says why, on one line."""


class DeletedError(TrackingError):
    """Somebody has deleted the experiment; the message says how to have it back."""


class AwayError(TrackingError):
    """The tracking server is not answering; the records stay on disk and can be delivered later."""


class Tracker:
    """One sweep in MLflow: a parent run, and a child run for every delivered trial."""

    def __init__(self, uri: str, *, experiment: str, sweep: str, sweep_id: str, artifacts: Path) -> None:
        """Open the store and find or create experiment and parent run; if the server is down, retry on later calls.

        Args:
            uri: tracking server or `sqlite:///PATH`.
            experiment: name shared by all sweeps on one task, such as `cifar10`.
            sweep: name of the parent run.
            sweep_id: unique id, because names may repeat on a shared server.
            artifacts: folder for the artifacts of a new experiment in a local store.

        Raises:
            TrackingError: if the store cannot be used: the file is not writable, or the server refuses.
        """
        self._uri, self._experiment, self._artifacts = uri, experiment, artifacts
        self._sweep, self._sweep_id = sweep, sweep_id
        self._served = uri.startswith(("http://", "https://"))
        self._away_until = 0.0
        self._ids: tuple[str, str] | None = None
        self.away: str | None = None
        """Why the last attempt to reach the server failed; None if it succeeded."""
        try:
            with self._translate_errors(), opening(uri, artifacts, connect=_connect_once):
                self._client = mlflow.MlflowClient(uri)
                self._connect()
        except AwayError as error:
            self._back_off(error)

    @property
    def experiment_id(self) -> str:
        """The id of the sweep's experiment; raises `TrackingError` if MLflow has not been reached yet."""
        with self._translate_errors():
            return self._connect()[0]

    @property
    def parent_id(self) -> str:
        """The id of the sweep's own run; raises `TrackingError` if MLflow has not been reached yet."""
        with self._translate_errors():
            return self._connect()[1]

    def deliver(self, folder: Path, scores: Mapping[str, float]) -> bool:
        """Deliver the record, curves and files of one trial folder to MLflow, unless this has been done.

        Args:
            folder: holds `record.json` and the files it names.
            scores: metrics that the driver adds to the trial's own.

        Returns:
            False if MLflow did not accept it; the folder stays in the outbox and `deliver` may be called again.
        """
        if self._ids is not None and self._is_delivered(folder):
            return True
        if time.monotonic() < self._away_until:
            return False
        try:
            with self._translate_errors():
                self._connect()
                if not self._is_delivered(folder):
                    self._deliver(folder, self._read(folder), scores)
        except TrackingError as error:
            self._back_off(error)
            return False
        self.away = None
        return True

    def try_again(self) -> None:
        """End the back-off, so that the next delivery is tried at once."""
        self._away_until = 0.0

    def sweep_artifacts(self, paths: Iterable[Path]) -> None:
        """Log files on the parent run; like all methods below, raises `TrackingError` if MLflow is down."""
        with self._translate_errors():
            for path in paths:
                self._client.log_artifact(self.parent_id, str(path))

    def sweep_metric(self, name: str, values: Mapping[int, float]) -> None:
        """Log a curve (step -> value) on the parent run; points that are there already are not sent again."""
        with self._translate_errors():
            there = {p.step: p.value for p in self._client.get_metric_history(self.parent_id, name)}
            now = int(time.time() * 1000)
            new = [Metric(name, value, now, step) for step, value in values.items() if there.get(step) != value]
            for start in range(0, len(new), BATCH_METRICS):
                self._client.log_batch(self.parent_id, metrics=new[start : start + BATCH_METRICS])

    def mark_front(self, members: Collection[str]) -> None:
        """Tag the runs with these ids `pareto = true`, and former members of the front `pareto = false`."""
        with self._translate_errors():
            marked = set(self._marked())
            for run_id in set(members) - marked:
                self._client.set_tag(run_id, "pareto", "true")
            for run_id in marked - set(members):
                self._client.set_tag(run_id, "pareto", "false")

    def describe(self, text: str) -> None:
        """Set the description at the top of the sweep's MLflow page, in Markdown."""
        with self._translate_errors():
            self._client.set_tag(self.parent_id, "mlflow.note.content", text)

    def tag_experiment(self, tags: Mapping[str, str]) -> None:
        """Set tags on the sweep's experiment."""
        with self._translate_errors():
            for name, value in tags.items():
                self._client.set_experiment_tag(self.experiment_id, name, value)

    def register(self, model: str, members: Mapping[str, str], aliases: Mapping[str, str]) -> str:
        """Register candidates under one name, each once even if called again, and point the aliases at them.

        `models:/MODEL@balanced` then loads with `mlflow.onnx` and `mlflow.pyfunc`.

        Args:
            model: name of the registered model.
            members: run id, with an artifact `model.onnx` -> description on the version's page.
            aliases: alias -> run id; each must be a member.

        Returns:
            The name; with a suffix if another sweep uses it.
        """
        with self._translate_errors():
            return register(self._client, model, members, aliases, sweep=self._sweep, sweep_id=self._sweep_id)

    def close(self, status: str) -> None:
        """End the parent run with the status `finished` or `interrupted`."""
        with self._translate_errors():
            self._client.set_tag(self.parent_id, "status", status)
            self._client.set_terminated(self.parent_id, "FINISHED" if status == "finished" else "KILLED")

    def _connect(self) -> tuple[str, str]:
        """Find or create experiment and parent run; return their ids."""
        if self._ids is None:
            experiment = self._experiment_id()
            where = f"tags.sweep_id = '{self._sweep_id}'"
            tags = {"kind": "sweep", "sweep": self._sweep, "sweep_id": self._sweep_id, "status": "running"}
            self._ids = experiment, self._find(experiment, where) or self._create(experiment, self._sweep, tags)
        return self._ids

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            location = None if self._served else self._artifacts.resolve().as_uri()
            try:
                return str(self._client.create_experiment(self._experiment, artifact_location=location))
            except MlflowException:  # another sweep has just created it
                found = self._client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        number = str(found.experiment_id)
        if found.lifecycle_stage != "active":
            raise DeletedError(
                f"its experiment {self._experiment} was deleted; bring it back by `mlflow experiments restore"
                f" --experiment-id {number}`, or end it by `mlflow gc --experiment-ids {number}`"
            )
        return number

    def _deliver(self, folder: Path, record: TrialRecord, scores: Mapping[str, float]) -> None:
        experiment, parent = self._connect()
        tags = trial_tags(record) | {"sweep": self._sweep, "mlflow.parentRunId": parent}
        # a driver that died before it wrote delivered.json may have created the run
        known = self._known(record)
        run_id = known or self._create(experiment, run_name(record), tags, started=record.started)
        ended = int(record.ended * 1000)
        final = {**record.metrics, **scores}
        metrics = [Metric(name, float(value), ended, 0) for name, value in final.items()]
        metrics += [Metric(name, value, ended, step) for name, value, step in curve(record)]
        params = [Param(name, str(value)) for name, value in record.params.items()]
        # a runtime cell that was unavailable, or in doubt, may have been measured since: update its tags
        had = self._client.get_run(known).data.tags if known else {}
        said = [RunTag(name, value) for name, value in tags.items() if had and had.get(name) != value]
        if record.reason or "reason" in had:
            said.append(RunTag("reason", record.reason[:REASON_LETTERS]))
        for i in range(max(-(-len(metrics) // BATCH_METRICS), -(-len(params) // BATCH_PARAMS), 1)):
            some = metrics[i * BATCH_METRICS : (i + 1) * BATCH_METRICS]
            self._client.log_batch(run_id, some, params[i * BATCH_PARAMS : (i + 1) * BATCH_PARAMS], [] if i else said)
        for name in record.files:
            self._client.log_artifact(run_id, str(folder / name))
        self._client.set_terminated(run_id, STATUS[record.status], end_time=ended)
        row = {"run_id": run_id, "parent_id": parent, "record": sha256(folder / RECORD)}
        write_text(folder / DELIVERED, to_json(row))

    def _read(self, folder: Path) -> TrialRecord:
        """The record of a folder; raises `TrackingError` if another sweep wrote it, or it is damaged."""
        try:
            record = read_trial(folder)
        except ValueError as error:
            raise TrackingError(str(error)) from error
        if record.sweep_id not in ("", self._sweep_id):
            raise TrackingError(f"{folder} is the result of another sweep (id {record.sweep_id}); move it away")
        return record

    def _known(self, record: TrialRecord) -> str | None:
        """The run of a record, if there is one; that of another configuration under its key is marked as replaced."""
        experiment, parent = self._connect()
        where = f"tags.key = '{record.key}' AND tags.`mlflow.parentRunId` = '{parent}' AND tags.kind != 'replaced'"
        known = self._find(experiment, where)
        had = self._client.get_run(known).data.params if known else {}
        if known and any(had.get(name, str(value)) != str(value) for name, value in record.params.items()):
            self._client.set_tag(known, "kind", "replaced")
            return None
        return known

    def _is_delivered(self, folder: Path) -> bool:
        """Whether this record of the folder, and no earlier one, has been delivered to this store."""
        row = read_delivered(folder)
        return row.get("parent_id") == self.parent_id and row.get("record") == sha256(folder / RECORD)

    def _find(self, experiment: str, where: str) -> str | None:
        runs = self._client.search_runs([experiment], where, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _marked(self) -> Iterator[str]:
        """Yield the ids of this sweep's runs that are tagged as its front."""
        experiment, parent = self._connect()
        where, token = f"tags.pareto = 'true' AND tags.`mlflow.parentRunId` = '{parent}'", None
        while True:
            page = self._client.search_runs([experiment], where, page_token=token)
            yield from (str(run.info.run_id) for run in page)
            if not (token := page.token):
                return

    def _create(self, experiment: str, name: str, tags: Mapping[str, str], *, started: float | None = None) -> str:
        start_ms = int((started or time.time()) * 1000)
        return str(self._client.create_run(experiment, run_name=name, start_time=start_ms, tags=dict(tags)).info.run_id)

    def _back_off(self, error: TrackingError) -> None:
        """Pause deliveries to a store that is not answering; one that refuses a single trial still gets the next."""
        self.away = str(error)
        if isinstance(error, AwayError) or not self._served:
            self._away_until = time.monotonic() + RETRY_AFTER_S

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translate MLflow's many exceptions into two: the server is down, or the store cannot be used."""
        try:
            with mlflow_settings(WRITING):
                yield
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
            kind = AwayError if self._served and _is_outage(error) else TrackingError
            raise kind(hide_password((str(error).splitlines() or [type(error).__name__])[0])) from error
        except ImportError as error:
            raise TrackingError(f"needs the module {error.name}; install it") from error


def _is_outage(error: Exception) -> bool:
    """Whether a server did not answer, or answered that it is unavailable."""
    # a web server at a wrong address answers with HTML, which MLflow reports as invalid JSON: retrying does not help
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 500
    return status >= 500 and "not in a valid JSON format" not in str(error)


def _connect_once(uri: str) -> None:
    mlflow.MlflowClient(uri).search_experiments(max_results=1)
