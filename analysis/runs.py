"""MLflow -> one row per child run. The only reader of MLflow."""

import json
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

TAGS = ("sweep", "key", "trial_number", "stage", "status", "control")
"""Tags of a child run that every frame has as columns."""
MEASURED_ON = ("latency_device", "latency_provider")
"""Tags that tell where a latency comes from; columns where a run has them."""
COUNTS = ("size_bytes", "macs", "latency_n", "trial_number")
"""Whole numbers, like every name that starts with `num_`; MLflow stores them as floats."""
LARGEST = 1.79e308
"""MLflow writes infinity as the largest float."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What MLflow knows about one sweep."""

    name: str
    """Of the sweep."""
    frame: pd.DataFrame
    """One row per child run, index `run_id`, in order of `trial_number`, the teacher first. Columns carry the names of
    tags, parameters and metrics byte for byte; a metric that a run lacks is NaN."""
    params: tuple[str, ...]
    """Columns that are parameters: the recipe."""
    metrics: tuple[str, ...]
    """Columns that are metrics: the last value of each."""
    sweeps: dict[str, dict[str, Any]]
    """Sweep name -> its `sweep.json`: directions, units, reference point, teacher, config, versions."""

    @property
    def sweep(self) -> dict[str, Any]:
        """The `sweep.json` of this sweep."""
        return self.sweeps[self.name]


def read_runs(tracking_uri: str, sweep: str | None = None, *, parent_id: str | None = None) -> Runs:
    """All trials of one sweep, by default of the newest; `parent_id` tells sweeps of one name apart.

    Raises:
        ValueError: if there is no such store or no such sweep, or the sweep's `sweep.json` cannot be read.
    """
    try:
        client = _client(tracking_uri)
        parent = client.get_run(parent_id) if parent_id else _parent(client, tracking_uri, sweep)
        query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}' and tags.kind = 'trial'"
        children = list(_pages(lambda token: client.search_runs([parent.info.experiment_id], query, page_token=token)))
        content = _sweep_json(client, parent)
    except (MlflowException, SQLAlchemyError) as error:
        raise ValueError(f"Cannot read tracking_uri={tracking_uri!r}: {_first_line(error)}") from error
    name = parent.data.tags["sweep"]
    params = tuple(sorted({key for run in children for key in run.data.params}))
    metrics = tuple(sorted({key for run in children for key in run.data.metrics}))
    return Runs(
        name=name,
        frame=_frame(children, params, metrics),
        params=params,
        metrics=metrics,
        sweeps={name: content},
    )


def fetch_artifact(tracking_uri: str, run_id: str, artifact: str, folder: Path) -> Path:
    """Copy one artifact of a run, such as `model.onnx`, into a folder.

    Raises:
        ValueError: if there is no such store, run or artifact.
    """
    try:
        return Path(_client(tracking_uri).download_artifacts(run_id, artifact, str(folder)))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise ValueError(f"Cannot read artifact {artifact!r} of {run_id=}: {_first_line(error)}") from error


def _client(tracking_uri: str) -> MlflowClient:
    if not tracking_uri:
        raise ValueError("No MLflow store at tracking_uri='': name one, such as sqlite:///runs/mlflow.db.")
    if tracking_uri.startswith("sqlite:"):
        _check_sqlite(tracking_uri)
    # MLflow's own default keeps a caller waiting for 246 s when the server is away.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    # A bar for one small file would tear a live table apart.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return MlflowClient(tracking_uri=tracking_uri)


def _check_sqlite(tracking_uri: str) -> None:
    """MLflow would create whatever is missing; a reader must not."""
    database = make_url(tracking_uri).database
    if not database or not Path(database).is_file():
        raise ValueError(f"No MLflow store at tracking_uri={tracking_uri!r}: the file does not exist.")
    connection = sqlite3.connect(f"{Path(database).resolve().as_uri()}?mode=ro", uri=True)
    try:
        known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"No MLflow store at tracking_uri={tracking_uri!r}: {error}.") from error
    finally:
        connection.close()
    if known is None:
        raise ValueError(f"No MLflow store at tracking_uri={tracking_uri!r}: the file has no MLflow tables.")


def _pages(call: Callable[[str | None], Any]) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = call(token)
        yield from page
        token = page.token
        if not token:
            return


def _parent(client: MlflowClient, tracking_uri: str, sweep: str | None) -> Run:
    """The newest parent run, of the named sweep or of all."""
    experiments = [e.experiment_id for e in _pages(lambda token: client.search_experiments(page_token=token))]
    found = _pages(lambda token: client.search_runs(experiments, "tags.kind = 'sweep'", page_token=token))
    parents = sorted(
        (run for run in found if "sweep" in run.data.tags), key=lambda run: run.info.start_time, reverse=True
    )
    if not parents:
        raise ValueError(f"No sweep in tracking_uri={tracking_uri!r} yet: run sweeps/kd_prune.py first.")
    for parent in parents:
        if sweep in (None, parent.data.tags["sweep"]):
            return parent
    known = ", ".join(dict.fromkeys(run.data.tags["sweep"] for run in parents))
    raise ValueError(f"No {sweep=} in tracking_uri={tracking_uri!r}; the sweeps there, newest first: {known}.")


def _sweep_json(client: MlflowClient, parent: Run) -> dict[str, Any]:
    name = parent.data.tags["sweep"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = Path(client.download_artifacts(parent.info.run_id, "sweep.json", folder))
            content = json.loads(path.read_text(encoding="utf-8"))
        except (MlflowException, OSError, ValueError) as error:
            raise ValueError(f"Cannot read sweep.json of sweep={name!r}: {_first_line(error)}") from error
    missing = [key for key in ("directions", "reference_point", "teacher") if not content.get(key)]
    if missing:
        raise ValueError(f"sweep.json of sweep={name!r} lacks {', '.join(missing)}.")
    return dict(content)


def _frame(runs: Sequence[Run], params: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    index = pd.Index([run.info.run_id for run in runs], name="run_id")
    columns: dict[str, list[Any]] = {"experiment_id": [run.info.experiment_id for run in runs]}
    tags = [*TAGS, *(tag for tag in MEASURED_ON if any(tag in run.data.tags for run in runs))]
    for tag in tags:
        columns[tag] = [run.data.tags.get(tag) for run in runs]
    for name in params:
        columns[name] = _typed([run.data.params.get(name) for run in runs])
    for name in metrics:
        columns[name] = [_number(run.data.metrics.get(name)) for run in runs]
    frame = pd.DataFrame(columns, index=index)
    frame["trial_number"] = pd.to_numeric(frame["trial_number"])
    for name in frame.columns:
        if (name in COUNTS or name.startswith("num_")) and frame[name].notna().all() and len(frame):
            frame[name] = frame[name].astype("int64")
    is_trial = (frame["stage"] != "teacher").rename("is_trial")
    order = pd.concat([is_trial, frame["trial_number"]], axis=1).sort_values(["is_trial", "trial_number"])
    return frame.loc[order.index]


def _typed(texts: Sequence[str | None]) -> list[Any]:
    """A column of parameter texts in the parameter's own type, decided for the whole column.

    Only texts that Python itself would print count as numbers, so a hash such as `00123e45` stays a text.
    """
    given = [text for text in texts if text not in (None, "None")]
    for parse in (_whole, _real, _truth):
        if given and all(parse(text) is not None for text in given):
            return [parse(text) if text not in (None, "None") else None for text in texts]
    return [None if text == "None" else text for text in texts]


def _whole(text: str) -> int | None:
    return int(text) if text.lstrip("-").isdecimal() and str(int(text)) == text else None


def _real(text: str) -> float | None:
    if _whole(text) is not None:
        return float(text)
    try:
        return float(text) if repr(float(text)) == text else None
    except ValueError:
        return None


def _truth(text: str) -> bool | None:
    return {"True": True, "False": False}.get(text)


def _number(value: float | None) -> float:
    if value is None:
        return np.nan
    return float(np.copysign(np.inf, value)) if abs(value) > LARGEST else float(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".") + "."
