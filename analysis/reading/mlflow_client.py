"""MLflow's stores: a SQLite file read in place, or anything else through MLflow's own client."""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from analysis.reading.mlflow_sqlite import SqliteStore, check_sqlite
from analysis.reading.rows import Row
from trainables.config.mlflow_settings import READING, mlflow_settings
from trainables.layout import DATABASE

T = TypeVar("T")
Point = tuple[str, int, float]
"""Metric, step, value."""


class Store(Protocol):
    """What `analysis` asks of MLflow."""

    def parents(self) -> list[Row]:
        """Every sweep, newest first."""

    def children(self, parent: Row, kind: str) -> list[Row]:
        """Every run of a kind, such as `trial`, under a sweep's run."""

    def fetch(self, run_id: str, artifact: str, folder: Path) -> Path:
        """The path of a run's artifact: itself if it is local, else a copy in `folder`."""

    def history(self, run_id: str) -> list[Point]:
        """Every value of every metric of a run."""


class FileStore:
    """A SQLite file, read in place; MLflow's client stands in where its tables or artifacts cannot be read so."""

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri
        self._store = SqliteStore(check_sqlite(tracking_uri))

    def parents(self) -> list[Row]:
        """Every sweep, newest first."""
        try:
            return [row for row in self._store.parents() if "sweep" in row.tags]
        except sqlite3.Error:  # the tables of another version of MLflow
            return ClientStore(self._uri).parents()

    def children(self, parent: Row, kind: str) -> list[Row]:
        """Every run of a kind, such as `trial`, under a sweep's run."""
        try:
            return self._store.children(parent, kind)
        except sqlite3.Error:
            return ClientStore(self._uri).children(parent, kind)

    def fetch(self, run_id: str, artifact: str, folder: Path) -> Path:
        """The path of a run's artifact: itself if it is local, else a copy in `folder`."""
        try:
            row = self._store.find(run_id)
            path = self._store.artifact(row, artifact) if row else None
        except sqlite3.Error:
            path = None
        return path or ClientStore(self._uri).fetch(run_id, artifact, folder)

    def history(self, run_id: str) -> list[Point]:
        """Every value of every metric of a run."""
        try:
            return self._store.history(run_id)
        except sqlite3.Error:
            return ClientStore(self._uri).history(run_id)


class ClientStore:
    """A tracking server or another database, read through MLflow's client."""

    def __init__(self, tracking_uri: str) -> None:
        # MLflow takes two seconds to import, which a SQLite file read in place does not need.
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self._uri = tracking_uri
        self._errors = (MlflowException, SQLAlchemyError, OSError)
        self.api = self._call(lambda: MlflowClient(tracking_uri=tracking_uri))

    def parents(self) -> list[Row]:
        """Every sweep, newest first."""

        def pages(token: str | None) -> Any:
            return self.api.search_experiments(page_token=token)

        experiments = self._call(lambda: [experiment.experiment_id for experiment in _pages(pages)])
        rows = [row for row in self._search(experiments, "tags.kind = 'sweep'") if "sweep" in row.tags]
        return sorted(rows, key=lambda row: row.started, reverse=True)

    def children(self, parent: Row, kind: str) -> list[Row]:
        """Every run of a kind, such as `trial`, under a sweep's run."""
        query = f"tags.`mlflow.parentRunId` = '{parent.run_id}' and tags.kind = '{kind}'"
        return self._search([parent.experiment_id], query)

    def fetch(self, run_id: str, artifact: str, folder: Path) -> Path:
        """The path of a run's artifact, copied into `folder` unless it is local."""
        try:
            with mlflow_settings(READING):
                return Path(self.api.download_artifacts(run_id, artifact, str(folder)))
        except self._errors as error:
            raise ValueError(f"Cannot read artifact {artifact!r} of {run_id=}: {first_line(error)}") from error

    def history(self, run_id: str) -> list[Point]:
        """Every value of every metric of a run."""

        def read() -> list[Point]:
            names = self.api.get_run(run_id).data.metrics
            return [(name, m.step, m.value) for name in names for m in self.api.get_metric_history(run_id, name)]

        return self._call(read)

    def aliased(self, model: str, alias: str) -> str | None:
        """The run behind `models:/MODEL@ALIAS`; None if the registry has no such model or alias."""
        from mlflow.exceptions import MlflowException

        try:
            with mlflow_settings(READING):
                return str(self.api.get_model_version_by_alias(model, alias).run_id)
        except MlflowException:
            return None

    def _search(self, experiments: Sequence[str], query: str) -> list[Row]:
        def pages(token: str | None) -> Any:
            return self.api.search_runs(experiments, query, page_token=token)

        return self._call(lambda: [_row(run) for run in _pages(pages)])

    def _call(self, call: Callable[[], T]) -> T:
        """The result of `call`; MLflow's errors become a ValueError of one line."""
        try:
            with mlflow_settings(READING):
                return call()
        except self._errors as error:
            raise ValueError(f"Cannot read tracking_uri={self._uri!r}: {first_line(error)}") from error
        except ImportError as error:  # of the database's driver
            raise ValueError(f"Cannot read tracking_uri={self._uri!r}: needs the module {error.name}.") from error


def open_store(tracking_uri: str) -> Store:
    """The store at an address.

    Raises:
        ValueError: if the store cannot be opened.
    """
    if not tracking_uri:
        raise ValueError(f"No MLflow store at tracking_uri='': name one, such as sqlite:///runs/{DATABASE}.")
    return FileStore(tracking_uri) if tracking_uri.startswith("sqlite:") else ClientStore(tracking_uri)


def _row(run: Any) -> Row:
    return Row(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        started=run.info.start_time or 0,
        ended=run.info.end_time or 0,
        artifacts=run.info.artifact_uri,
        tags=run.data.tags,
        params=run.data.params,
        metrics={name: value for name, value in run.data.metrics.items() if value == value},  # NaN is a missing value
    )


def _pages(call: Callable[[str | None], Any]) -> Iterator[Any]:
    """All results of a paged call; MLflow returns at most 1000 runs at once."""
    token: str | None = None
    while True:
        page = call(token)
        yield from page
        token = page.token
        if not token:
            return


def first_line(error: Exception) -> str:
    """The first line of an exception's message, with a full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."
