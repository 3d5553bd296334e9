"""MLflow to one row per child run; everything else in `analysis` that needs MLflow's data asks this module."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.reading.mlflow_client import ClientStore, Store, first_line, open_store
from analysis.reading.pooling import pool_latencies
from analysis.reading.rows import Row, busy_seconds, frame_of, names_of
from trainables.config.escaping import without_user
from trainables.layout import SWEEP_JSON


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What MLflow holds of one sweep, or of several taken together."""

    name: str
    """The sweep's name; of several sweeps, their names joined by commas."""
    frame: pd.DataFrame
    """One row per child run, index `run_id`, in order of `trial_number`, the teacher first. Columns carry the names of
    tags, parameters and metrics byte for byte; a metric that a run lacks is NaN. Latencies of one shape are pooled
    (`analysis.reading.pooling`)."""
    params: tuple[str, ...]
    """Columns that are parameters: a candidate's recipe."""
    metrics: tuple[str, ...]
    """Columns that are metrics, each with its last value."""
    sweeps: dict[str, dict[str, Any]]
    """Sweep name -> its `sweep.json`: directions, units, reference point, teacher, config, versions."""
    url: str = "http://127.0.0.1:5000"
    """Where a browser finds MLflow: the tracking server, or the default address of `mlflow ui`."""
    parent_ids: tuple[str, ...] = ()
    """Ids of the MLflow runs that stand for the sweeps themselves."""
    busy_s: float = 0.0
    """Seconds in which a trial ran; time between two runs of the command does not count."""

    @property
    def sweep(self) -> dict[str, Any]:
        """The `sweep.json` of this sweep; of several, that of the first."""
        return self.sweeps[self.name] if self.name in self.sweeps else next(iter(self.sweeps.values()))


def read_runs(tracking_uri: str, name: str | None = None, *, parent_id: str | None = None) -> Runs:
    """All trials of one sweep, or of several taken together.

    Args:
        tracking_uri: the MLflow store.
        name: of the sweep; several names with commas between them; None for the newest sweep.
        parent_id: MLflow's run of the sweep, where several sweeps in the store have the same name.

    Raises:
        ValueError: if there is no such store or no such sweep, or the sweep's `sweep.json` cannot be read.
    """
    store = open_store(tracking_uri)
    parents = store.parents()
    if parent_id:
        return _runs(store, [parent for parent in parents if parent.run_id == parent_id], tracking_uri)
    if not parents:
        raise ValueError(f"No sweep in tracking_uri={tracking_uri!r} yet: run sweeps/kd_prune.py first.")
    names = [parents[0].tags["sweep"]] if name is None else _split_names(name, parents)
    chosen = []
    for name in names:
        found = [parent for parent in parents if parent.tags["sweep"] == name]
        if not found:
            known = ", ".join(dict.fromkeys(parent.tags["sweep"] for parent in parents))
            raise ValueError(
                f"There is no sweep name={name!r} in tracking_uri={tracking_uri!r};"
                f" the sweeps there, newest first: {known}."
            )
        chosen.append(found[0])  # the newest: a shared server may hold several sweeps of one name
    return _runs(store, chosen, tracking_uri)


def fetch_artifact(tracking_uri: str, run_id: str, artifact: str, folder: Path) -> Path:
    """The path of a run's artifact, such as `model.onnx`: the artifact itself if it is local, else a copy in `folder`.

    Raises:
        ValueError: if there is no such store, run or artifact.
    """
    return open_store(tracking_uri).fetch(run_id, artifact, folder)


def read_curves(tracking_uri: str, run_ids: Sequence[str]) -> pd.DataFrame:
    """All values that runs logged while they trained: columns `run_id`, `metric`, `step` (the epoch) and `value`.

    Raises:
        ValueError: if there is no such store or run.
    """
    store = open_store(tracking_uri)
    points = [(run_id, *point) for run_id in run_ids for point in store.history(run_id)]
    return pd.DataFrame(points, columns=["run_id", "metric", "step", "value"])


def read_cells(tracking_uri: str, runs: Runs) -> pd.DataFrame:
    """The cells measured for the table of runtimes of these sweeps, one row per cell as in `Runs.frame`.

    Raises:
        ValueError: if there is no such store.
    """
    store = open_store(tracking_uri)
    parents = [parent for parent in store.parents() if parent.run_id in runs.parent_ids]
    rows = [row for parent in parents for row in store.children(parent, "runtime")]
    return frame_of(rows, names_of(rows, "params"), names_of(rows, "metrics"))


def aliased_run(tracking_uri: str, model: str, alias: str) -> str | None:
    """The run behind `models:/MODEL@ALIAS` in MLflow's registry; None if there is no such model or alias.

    Raises:
        ValueError: if there is no such store.
    """
    return ClientStore(tracking_uri).aliased(model, alias)


def _split_names(text: str, parents: Sequence[Row]) -> list[str]:
    """The sweeps that a text names: one sweep whose own name has commas, or several with commas between them."""
    if any(parent.tags["sweep"] == text for parent in parents):
        return [text]
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip())) or [text]


def _runs(store: Store, parents: Sequence[Row], tracking_uri: str) -> Runs:
    contents = {parent.tags["sweep"]: _sweep_json(store, parent) for parent in parents}
    rows = [row for parent in parents for row in store.children(parent, "trial")]
    params, metrics = names_of(rows, "params"), names_of(rows, "metrics")
    frame = pool_latencies(frame_of(rows, params, metrics))
    if len(contents) > 1:
        _check_together(contents)
        numbers = frame["trial_number"].map("{:.0f}".format, na_action="ignore")
        frame["label"] = frame["sweep"].str.cat(numbers, sep=" ")  # trial numbers alone would be ambiguous
    return Runs(
        name=",".join(contents),
        frame=frame,
        params=params,
        metrics=metrics,
        sweeps=contents,
        parent_ids=tuple(parent.run_id for parent in parents),
        busy_s=busy_seconds(rows),
        **({"url": without_user(tracking_uri).rstrip("/")} if tracking_uri.startswith("http") else {}),
    )


def _check_together(contents: dict[str, dict[str, Any]]) -> None:
    """Refuse sweeps whose fronts or hypervolumes could not be compared."""
    (first, one), *others = contents.items()
    for name, content in others:
        for key in ("directions", "reference_point"):
            if content[key] != one[key]:
                raise ValueError(f"Sweeps {name} and {first} differ in {key}: show them one by one.")


def _sweep_json(store: Store, parent: Row) -> dict[str, Any]:
    name = parent.tags["sweep"]
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = store.fetch(parent.run_id, SWEEP_JSON, Path(folder))
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"Cannot read {SWEEP_JSON} of sweep {name}: {first_line(error)}") from error
    missing = [key for key in ("directions", "reference_point", "teacher") if not content.get(key)]
    if missing:
        raise ValueError(f"{SWEEP_JSON} of sweep {name} lacks {', '.join(missing)}.")
    return dict(content)
