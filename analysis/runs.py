"""MLflow -> one row per child run. The only reader of MLflow."""

import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pandas as pd

from analysis.mlflow_sqlite import SqliteStore, check_sqlite
from analysis.rows import Row, frame_of, names_of

T = TypeVar("T")
Point = tuple[str, int, float]
"""Metric, step, value."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What MLflow knows about one sweep, or about several taken together."""

    name: str
    """Of the sweep; of several, joined by commas."""
    frame: pd.DataFrame
    """One row per child run, index `run_id`, in order of `trial_number`, the teacher first. Columns carry the names of
    tags, parameters and metrics byte for byte; a metric that a run lacks is NaN."""
    params: tuple[str, ...]
    """Columns that are parameters: the recipe."""
    metrics: tuple[str, ...]
    """Columns that are metrics: the last value of each."""
    sweeps: dict[str, dict[str, Any]]
    """Sweep name -> its `sweep.json`: directions, units, reference point, teacher, config, versions."""
    url: str = "http://127.0.0.1:5000"
    """Where a browser finds MLflow: the tracking server, or where `mlflow ui` listens unless told otherwise."""
    parent_ids: tuple[str, ...] = ()
    """MLflow's runs of the sweeps themselves."""

    @property
    def sweep(self) -> dict[str, Any]:
        """The `sweep.json` of this sweep; of several, that of the first."""
        return self.sweeps[self.name] if self.name in self.sweeps else next(iter(self.sweeps.values()))


def read_runs(tracking_uri: str, sweep: str | None = None, *, parent_id: str | None = None) -> Runs:
    """All trials of one sweep, by default of the newest; `parent_id` tells sweeps of one name apart.

    Several sweeps, named with commas between, are taken together.

    Raises:
        ValueError: if there is no such store or no such sweep, or the sweep's `sweep.json` cannot be read.
    """
    store = _open(tracking_uri)
    parents = store.parents()
    if parent_id:
        return _runs(store, [parent for parent in parents if parent.run_id == parent_id], tracking_uri)
    if not parents:
        raise ValueError(f"No sweep in tracking_uri={tracking_uri!r} yet: run sweeps/kd_prune.py first.")
    names = [parents[0].tags["sweep"]] if sweep is None else _split_names(sweep, parents)
    chosen = []
    for name in names:
        found = [parent for parent in parents if parent.tags["sweep"] == name]
        if not found:
            known = ", ".join(dict.fromkeys(parent.tags["sweep"] for parent in parents))
            raise ValueError(
                f"No sweep={name!r} in tracking_uri={tracking_uri!r}; the sweeps there, newest first: {known}."
            )
        chosen.append(found[0])
    return _runs(store, chosen, tracking_uri)


def fetch_artifact(tracking_uri: str, run_id: str, artifact: str, folder: Path) -> Path:
    """One artifact of a run, such as `model.onnx`: where it lies on this machine, else a copy in `folder`.

    Raises:
        ValueError: if there is no such store, run or artifact.
    """
    return _open(tracking_uri).fetch(run_id, artifact, folder)


def read_curves(tracking_uri: str, run_ids: Sequence[str]) -> pd.DataFrame:
    """Everything that was noted while runs trained: columns `run_id`, `metric`, `step` (the epoch) and `value`.

    Raises:
        ValueError: if there is no such store or run.
    """
    store = _open(tracking_uri)
    points = [(run_id, *point) for run_id in run_ids for point in store.history(run_id)]
    return pd.DataFrame(points, columns=["run_id", "metric", "step", "value"])


def read_cells(tracking_uri: str, runs: Runs) -> pd.DataFrame:
    """Cells of the table of runtimes under the runs of these sweeps, a row each as in `Runs.frame`.

    Raises:
        ValueError: if there is no such store.
    """
    store = _open(tracking_uri)
    parents = [parent for parent in store.parents() if parent.run_id in runs.parent_ids]
    rows = [row for parent in parents for row in store.children(parent, "runtime")]
    return frame_of(rows, names_of(rows, "params"), names_of(rows, "metrics"))


def aliased_run(tracking_uri: str, model: str, alias: str) -> str | None:
    """The run behind `models:/MODEL@ALIAS` in MLflow's registry; None if there is no such model or alias.

    Raises:
        ValueError: if there is no such store.
    """
    client = _Client(tracking_uri)
    from mlflow.exceptions import MlflowException

    try:
        return str(client.api.get_model_version_by_alias(model, alias).run_id)
    except MlflowException:
        return None


class _Store(Protocol):
    def parents(self) -> list[Row]:
        """Every sweep, newest first."""

    def children(self, parent: Row, kind: str) -> list[Row]:
        """Every run of a kind under a sweep's."""

    def fetch(self, run_id: str, artifact: str, folder: Path) -> Path:
        """One artifact of a run."""

    def history(self, run_id: str) -> list[Point]:
        """Every value of every metric of a run."""


class _File:
    """A SQLite file, read in place; MLflow's client is asked where that does not do."""

    def __init__(self, tracking_uri: str) -> None:
        self._uri = tracking_uri
        self._store = SqliteStore(check_sqlite(tracking_uri))

    def parents(self) -> list[Row]:
        try:
            return [row for row in self._store.parents() if "sweep" in row.tags]
        except sqlite3.Error:  # tables of another MLflow
            return _Client(self._uri).parents()

    def children(self, parent: Row, kind: str) -> list[Row]:
        try:
            return self._store.children(parent, kind)
        except sqlite3.Error:
            return _Client(self._uri).children(parent, kind)

    def fetch(self, run_id: str, artifact: str, folder: Path) -> Path:
        try:
            row = self._store.find(run_id)
            path = self._store.artifact(row, artifact) if row else None
        except sqlite3.Error:
            path = None
        return path or _Client(self._uri).fetch(run_id, artifact, folder)

    def history(self, run_id: str) -> list[Point]:
        try:
            return self._store.history(run_id)
        except sqlite3.Error:
            return _Client(self._uri).history(run_id)


class _Client:
    """MLflow's own client, for servers and other databases."""

    def __init__(self, tracking_uri: str) -> None:
        # MLflow's own default keeps a caller waiting for 246 s when the server is away.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        # A bar for one small file would tear a live table apart.
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        self._uri = tracking_uri
        self._errors = (MlflowException, SQLAlchemyError, OSError)
        self.api = self._told(lambda: MlflowClient(tracking_uri=tracking_uri))

    def parents(self) -> list[Row]:
        def pages(token: str | None) -> Any:
            return self.api.search_experiments(page_token=token)

        experiments = self._told(lambda: [experiment.experiment_id for experiment in _pages(pages)])
        rows = [row for row in self._search(experiments, "tags.kind = 'sweep'") if "sweep" in row.tags]
        return sorted(rows, key=lambda row: row.started, reverse=True)

    def children(self, parent: Row, kind: str) -> list[Row]:
        query = f"tags.`mlflow.parentRunId` = '{parent.run_id}' and tags.kind = '{kind}'"
        return self._search([parent.experiment_id], query)

    def fetch(self, run_id: str, artifact: str, folder: Path) -> Path:
        try:
            return Path(self.api.download_artifacts(run_id, artifact, str(folder)))
        except self._errors as error:
            raise ValueError(f"Cannot read artifact {artifact!r} of {run_id=}: {_first_line(error)}") from error

    def history(self, run_id: str) -> list[Point]:
        def read() -> list[Point]:
            names = self.api.get_run(run_id).data.metrics
            return [(name, m.step, m.value) for name in names for m in self.api.get_metric_history(run_id, name)]

        return self._told(read)

    def _search(self, experiments: Sequence[str], query: str) -> list[Row]:
        def pages(token: str | None) -> Any:
            return self.api.search_runs(experiments, query, page_token=token)

        return self._told(lambda: [_row(run) for run in _pages(pages)])

    def _told(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except self._errors as error:
            raise ValueError(f"Cannot read tracking_uri={self._uri!r}: {_first_line(error)}") from error


def _open(tracking_uri: str) -> _Store:
    if not tracking_uri:
        raise ValueError("No MLflow store at tracking_uri='': name one, such as sqlite:///runs/mlflow.db.")
    return _File(tracking_uri) if tracking_uri.startswith("sqlite:") else _Client(tracking_uri)


def _row(run: Any) -> Row:
    return Row(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        started=run.info.start_time or 0,
        artifacts=run.info.artifact_uri,
        tags=run.data.tags,
        params=run.data.params,
        metrics={name: value for name, value in run.data.metrics.items() if value == value},
    )


def _pages(call: Callable[[str | None], Any]) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = call(token)
        yield from page
        token = page.token
        if not token:
            return


def _split_names(text: str, parents: Sequence[Row]) -> list[str]:
    """The sweeps that a text names: one whose name has commas in it, or several with commas between."""
    if any(parent.tags["sweep"] == text for parent in parents):
        return [text]
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip())) or [text]


def _runs(store: _Store, parents: Sequence[Row], tracking_uri: str) -> Runs:
    contents = {parent.tags["sweep"]: _sweep_json(store, parent) for parent in parents}
    rows = [row for parent in parents for row in store.children(parent, "trial")]
    params, metrics = names_of(rows, "params"), names_of(rows, "metrics")
    frame = frame_of(rows, params, metrics)
    if len(contents) > 1:
        _check_together(contents)
        numbers = frame["trial_number"].map("{:.0f}".format, na_action="ignore")
        frame["label"] = frame["sweep"].str.cat(numbers, sep=" ")
    return Runs(
        name=",".join(contents),
        frame=frame,
        params=params,
        metrics=metrics,
        sweeps=contents,
        parent_ids=tuple(parent.run_id for parent in parents),
        **({"url": tracking_uri.rstrip("/")} if tracking_uri.startswith("http") else {}),
    )


def _check_together(contents: dict[str, dict[str, Any]]) -> None:
    (first, one), *others = contents.items()
    for name, content in others:
        for key in ("directions", "reference_point"):
            if content[key] != one[key]:
                raise ValueError(f"sweep={name!r} and {first!r} differ in {key}: show them one by one.")


def _sweep_json(store: _Store, parent: Row) -> dict[str, Any]:
    name = parent.tags["sweep"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = store.fetch(parent.run_id, "sweep.json", Path(folder))
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"Cannot read sweep.json of sweep={name!r}: {_first_line(error)}") from error
    missing = [key for key in ("directions", "reference_point", "teacher") if not content.get(key)]
    if missing:
        raise ValueError(f"sweep.json of sweep={name!r} lacks {', '.join(missing)}.")
    return dict(content)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."
