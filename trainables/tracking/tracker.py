"""The only MLflow writer: delivers what trials left in their folders, each exactly once.

Runs on the driver. Trials write records and files to disk (the outbox) and never talk to MLflow, so a tracking
server that is away costs nothing but a later delivery.
"""

import json
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from trainables.config.mlflow_settings import WRITING, mlflow_settings
from trainables.files import write_text
from trainables.layout import DELIVERED
from trainables.records.encoding import to_json
from trainables.records.trial import TrialRecord, read_trial
from trainables.tracking.registry import register
from trainables.tracking.run_fields import STATUS, curve, trial_tags

RETRY_AFTER_S = 30.0
BATCH_METRICS = 800  # MLflow takes 1,000 metrics, parameters and tags a call
BATCH_PARAMS = 100
REASON_LETTERS = 4000


class TrackingError(Exception):
    """The MLflow store cannot be used; the message says why, on one line."""


class AwayError(TrackingError):
    """The tracking server does not answer now; what waits on disk can be delivered later."""


class Tracker:
    """One sweep in MLflow: a parent run, and a child run for every delivered trial."""

    def __init__(self, uri: str, *, experiment: str, sweep: str, sweep_id: str, artifacts: Path) -> None:
        """Open the store and find or make experiment and parent run; a server that is away is asked again later.

        Args:
            uri: tracking server or `sqlite:///PATH`.
            experiment: one for a task, such as `cifar10`.
            sweep: name of the parent run.
            sweep_id: unique; names may repeat on a shared server.
            artifacts: folder for the artifacts of a new experiment in a local store.

        Raises:
            TrackingError: if the store cannot be used: a file that cannot be written, a server that says no.
        """
        self._uri, self._experiment, self._artifacts = uri, experiment, artifacts
        self._sweep, self._sweep_id = sweep, sweep_id
        self._served = uri.startswith(("http://", "https://"))
        self._away_until = 0.0
        self._ids: tuple[str, str] | None = None
        self.away: str | None = None
        """Why the server could not be reached when it was last tried; None if it could."""
        try:
            with self._told():
                if uri.startswith("sqlite:///"):
                    _write_ahead(Path(uri.removeprefix("sqlite:///").partition("?")[0]))
                self._client = mlflow.MlflowClient(uri)
                self._connect()
        except AwayError as error:
            self._rest(error)

    @property
    def experiment_id(self) -> str:
        """Of the sweep's experiment; raises `TrackingError` if MLflow is away and was never seen."""
        with self._told():
            return self._connect()[0]

    @property
    def parent_id(self) -> str:
        """Of the sweep's own run; raises `TrackingError` if MLflow is away and was never seen."""
        with self._told():
            return self._connect()[1]

    def deliver(self, folder: Path, scores: Mapping[str, float]) -> bool:
        """Bring one trial folder's record, curves and files to MLflow, unless that has been done.

        Args:
            folder: holds `record.json` and the files it names.
            scores: numbers that the driver adds to the trial's own.

        Returns:
            False if MLflow is away; the folder stays in the outbox and `deliver` may be called again.
        """
        if self._ids is not None and self._has(folder):
            return True
        if time.monotonic() < self._away_until:
            return False
        try:
            with self._told():
                self._connect()
                if not self._has(folder):
                    self._deliver(folder, read_trial(folder), scores)
        except TrackingError as error:
            self._rest(error)
            return False
        self.away = None
        return True

    def try_again(self) -> None:
        """Forget that MLflow was away a moment ago: the next delivery is tried at once."""
        self._away_until = 0.0

    def sweep_artifacts(self, paths: Iterable[Path]) -> None:
        """Put files on the parent run; like all that follows, raises `TrackingError` if MLflow is away."""
        with self._told():
            for path in paths:
                self._client.log_artifact(self.parent_id, str(path))

    def sweep_metric(self, name: str, values: Mapping[int, float]) -> None:
        """A curve on the parent run, step -> value; points that it has already are not sent again."""
        with self._told():
            there = {p.step: p.value for p in self._client.get_metric_history(self.parent_id, name)}
            now = int(time.time() * 1000)
            new = [Metric(name, value, now, step) for step, value in values.items() if there.get(step) != value]
            for start in range(0, len(new), BATCH_METRICS):
                self._client.log_batch(self.parent_id, metrics=new[start : start + BATCH_METRICS])

    def mark_front(self, members: Collection[str]) -> None:
        """Tag these runs, by id, with `pareto = true`, and those that were on an earlier front with `false`."""
        with self._told():
            marked = set(self._marked())
            for run_id in set(members) - marked:
                self._client.set_tag(run_id, "pareto", "true")
            for run_id in marked - set(members):
                self._client.set_tag(run_id, "pareto", "false")

    def describe(self, text: str) -> None:
        """What MLflow's page of the sweep says on top, in Markdown."""
        with self._told():
            self._client.set_tag(self.parent_id, "mlflow.note.content", text)

    def tag_experiment(self, tags: Mapping[str, str]) -> None:
        """Set tags of the sweep's experiment."""
        with self._told():
            for name, value in tags.items():
                self._client.set_experiment_tag(self.experiment_id, name, value)

    def register(self, model: str, members: Mapping[str, str], aliases: Mapping[str, str]) -> str:
        """Register candidates under one name, each once however often this is called, and point the aliases at them.

        `models:/MODEL@balanced` then loads with `mlflow.onnx` and `mlflow.pyfunc`.

        Args:
            model: name of the registered model.
            members: run ids, each with an artifact `model.onnx` -> what the version's page says of it.
            aliases: alias -> run id, all of them members.

        Returns:
            The name; with a suffix where another sweep has it.
        """
        with self._told():
            return register(self._client, model, members, aliases, sweep=self._sweep, sweep_id=self._sweep_id)

    def close(self, status: str) -> None:
        """End the parent run: `finished` or `interrupted`."""
        with self._told():
            self._client.set_tag(self.parent_id, "status", status)
            self._client.set_terminated(self.parent_id, "FINISHED" if status == "finished" else "KILLED")

    def _connect(self) -> tuple[str, str]:
        """(experiment, parent run), found or made once."""
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
            except MlflowException:  # another sweep has just made it
                found = self._client.get_experiment_by_name(self._experiment)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _deliver(self, folder: Path, record: TrialRecord, scores: Mapping[str, float]) -> None:
        experiment, parent = self._connect()
        where = f"tags.key = '{record.key}' AND tags.`mlflow.parentRunId` = '{parent}'"
        tags = trial_tags(record) | {"sweep": self._sweep, "mlflow.parentRunId": parent}
        name = record.key.rpartition("/")[2]
        known = self._find(experiment, where)
        run_id = known or self._create(experiment, name, tags, started=record.started)
        ended = int(record.ended * 1000)
        final = {**record.metrics, **scores}
        metrics = [Metric(name, float(value), ended, 0) for name, value in final.items()]
        metrics += [Metric(name, value, ended, step) for name, value, step in curve(record)]
        params = [Param(name, str(value)) for name, value in record.params.items()]
        # a cell that was absent, or in doubt, may have been measured since
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
        write_text(folder / DELIVERED, to_json({"run_id": run_id, "parent_id": parent}))

    def _has(self, folder: Path) -> bool:
        """Whether the folder's record has been delivered to this store; another one may have got it before."""
        marker = folder / DELIVERED
        return marker.exists() and bool(json.loads(marker.read_text("utf-8")).get("parent_id") == self.parent_id)

    def _find(self, experiment: str, where: str) -> str | None:
        runs = self._client.search_runs([experiment], where, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _marked(self) -> Iterator[str]:
        """Runs of this sweep that are tagged as its front."""
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

    def _rest(self, error: TrackingError) -> None:
        """Leave a store alone that does not answer; one that refuses a single trial is asked for the next."""
        self.away = str(error)
        if isinstance(error, AwayError) or not self._served:
            self._away_until = time.monotonic() + RETRY_AFTER_S

    @contextmanager
    def _told(self) -> Iterator[None]:
        """MLflow's many errors as two: away, or not to be used."""
        try:
            with mlflow_settings(WRITING):
                yield
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
            kind = AwayError if self._served and _is_silence(error) else TrackingError
            raise kind((str(error).splitlines() or [type(error).__name__])[0]) from error
        except ImportError as error:
            raise TrackingError(f"needs the module {error.name}; install it") from error


def _is_silence(error: Exception) -> bool:
    """Whether a server did not answer, or said that it cannot now; a wrong address that answers is not silent."""
    status = error.get_http_status_code() if isinstance(error, MlflowException) else 500
    return status >= 500 and "not in a valid JSON format" not in str(error)


def _write_ahead(database: Path) -> None:
    """Switch a SQLite file to write-ahead logging: 8 ms instead of 24 ms a batch, and readers do not block."""
    database.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(database, timeout=20)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
