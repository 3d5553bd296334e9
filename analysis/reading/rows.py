"""Runs as MLflow stores them, parameters and tags all text, and the typed frame made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

# Tags of a child run that every frame has as columns.
TAGS = ("sweep", "key", "trial_number", "stage", "status", "control")
# Tags that say where a latency was measured or why there is none, and the float layers of an INT8 file: columns only
# where some run has them.
MEASURED_ON = ("latency_device", "latency_provider", "latency_verdict", "latency_shape", "reason", "kept_in_float")
# Whole numbers, like every name that starts with `num_`; MLflow stores all metrics as floats.
COUNTS = ("size_bytes", "macs", "latency_n", "trial_number")
# MLflow's databases hold no infinity: its client writes the largest float, about 1.797e308, in its place.
LARGEST = 1.79e308


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run, parent or child."""

    run_id: str
    experiment_id: str
    started: int
    """Unix time, milliseconds."""
    ended: int
    """The same; 0 while it runs."""
    artifacts: str
    """URI of its artifact folder."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each."""


def names_of(rows: Sequence[Row], what: str) -> tuple[str, ...]:
    """All names in `params` or `metrics` of the rows, sorted."""
    return tuple(sorted({name for row in rows for name in getattr(row, what)}))


def frame_of(rows: Sequence[Row], params: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """One typed row per run, index `run_id`, in order of `trial_number`, the teacher first."""
    columns: dict[str, list[Any]] = {"experiment_id": [row.experiment_id for row in rows]}
    tags = [*TAGS, *(tag for tag in MEASURED_ON if any(tag in row.tags for row in rows))]
    for tag in tags:
        columns[tag] = [row.tags.get(tag) for row in rows]
    for name in params:
        columns[name] = _typed([row.params.get(name) for row in rows])
    for name in metrics:
        columns[name] = [_number(row.metrics.get(name)) for row in rows]
    frame = pd.DataFrame(columns, index=pd.Index([row.run_id for row in rows], name="run_id"))
    frame["trial_number"] = pd.to_numeric(frame["trial_number"])
    # A column with a missing value stays float: pandas' int64 has no NaN.
    for name in frame.columns:
        if (name in COUNTS or name.startswith("num_")) and frame[name].notna().all() and len(frame):
            frame[name] = frame[name].astype("int64")
    is_trial = (frame["stage"] != "teacher").rename("is_trial")
    order = pd.concat([is_trial, frame["trial_number"]], axis=1).sort_values(["is_trial", "trial_number"])
    return frame.loc[order.index]


def busy_seconds(rows: Sequence[Row]) -> float:
    """Seconds in which at least one of these runs ran; one that has not ended does not count."""
    total, until = 0.0, 0
    for started, ended in sorted((row.started, row.ended) for row in rows):
        total += max(0, ended - max(started, until)) / 1e3
        until = max(until, ended)
    return total


def finished_runs(frame: pd.DataFrame, stage: str = "candidate") -> pd.DataFrame:
    """The rows of a stage, `candidate` or `teacher`, whose run finished: not stopped, infeasible or failed."""
    return frame[(frame["status"] == "finished") & (frame["stage"] == stage)]


def row_of(frame: pd.DataFrame, run_id: object) -> "pd.Series[Any]":
    """The one row of a run."""
    return frame.loc[[run_id]].iloc[0]


def _typed(texts: Sequence[str | None]) -> list[Any]:
    """A column of parameter texts in the parameter's own type, decided for the whole column.

    Only texts that Python itself would print count as numbers, so a hash such as `00123e45` stays text.
    """
    # Parameters are stored as `str(value)`: None is the text "None".
    distinct = {text for text in texts if text is not None and text != "None"}
    for parse in (_whole, _real, _truth):
        values = {text: parse(text) for text in distinct}
        if distinct and all(value is not None for value in values.values()):
            return [values.get(text) if text is not None else None for text in texts]
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
