"""The Pareto front of a sweep: which candidates are on it, and which have a name."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from analysis.findings.confidence import may_be_optimal
from analysis.findings.pareto import AXES, hypervolume_over_trials, knee, non_dominated, normalised, objectives
from analysis.reading.runs import Runs

GROUPED_BY = ("dataset", "latency_device", "latency_runtime")
"""Columns whose values do not compete with each other."""


def retrained(frame: pd.DataFrame) -> pd.Series:
    """True for champions that were trained again and for their control arms, which `findings.controls` reports."""
    if "control" not in frame.columns:
        return pd.Series(False, index=frame.index)
    return frame["control"].notna() & (frame["stage"] == "candidate")


def mark_front(frame: pd.DataFrame, directions: Mapping[str, str]) -> pd.DataFrame:
    """A copy with the columns `pareto` and `may_be_optimal`: no other candidate dominates it, or rules it out.

    Only finished trials compete, and only with all objectives finite: a stopped, infeasible or failed one is never on
    a front, however good it looked. Neither the teacher nor retrained champions and controls compete. Accuracies of
    different data and latencies of different devices do not either: every such group has its own front.
    """
    marked = frame.assign(pareto=False, may_be_optimal=False)
    rivals = frame[(frame["status"] == "finished") & (frame["stage"] == "candidate") & ~retrained(frame)]
    for _, group in _groups(rivals):
        points = objectives(group, directions)
        if len(points):
            marked.loc[points.index[non_dominated(points.to_numpy())], "pareto"] = True
            marked.loc[points.index, "may_be_optimal"] = may_be_optimal(group.loc[points.index])
    return marked


def competing(runs: Runs) -> pd.DataFrame:
    """Finished candidates with all objectives finite, with the column `pareto`."""
    frame = mark_front(runs.frame, runs.sweep["directions"])
    frame = frame[(frame["status"] == "finished") & (frame["stage"] == "candidate") & ~retrained(frame)]
    return frame.loc[objectives(frame, runs.sweep["directions"]).index] if len(frame) else frame


def split(runs: Runs) -> dict[str, Runs]:
    """One `Runs` for every data set and device that has finished candidates, named `DATASET, DEVICE`; else all in one.

    A device on which the teacher was not run gets its latency from the rows, which name its own p50 there.
    """
    groups = dict(_groups(runs.frame[(runs.frame["status"] == "finished") & (runs.frame["stage"] == "candidate")]))
    if len(groups) < 2:
        return {"": runs}
    return {name: _part(runs, group) for name, group in groups.items()}


def of_device(runs: Runs, device: str) -> Runs:
    """Only what was timed on one device.

    Raises:
        ValueError: if nothing was.
    """
    known = runs.frame.get("latency_device", pd.Series(dtype=object))
    rows = runs.frame[(known == device) & (runs.frame["stage"] == "candidate")] if len(known) else runs.frame.iloc[:0]
    if rows.empty:
        there = ", ".join(sorted(known.dropna().unique())) or "not recorded"
        raise ValueError(f"device={device!r} has no candidate in sweep {runs.name}; devices there: {there}.")
    return _part(runs, rows)


def _part(runs: Runs, group: pd.DataFrame) -> Runs:
    same = pd.Series(True, index=runs.frame.index)
    for name in GROUPED_BY:
        if name in group.columns:
            same &= runs.frame[name].isin(group[name].unique())
    frame, sweep = runs.frame[same], runs.sweep
    if not (frame["stage"] == "teacher").any() and "reference_latency_p50_ms" in group.columns:
        teacher = {**sweep["teacher"], "latency_p50_ms": float(group["reference_latency_p50_ms"].median())}
        sweep = {**sweep, "teacher": teacher}
    return dataclasses.replace(runs, frame=frame, sweeps={**runs.sweeps, runs.name: sweep})


def _groups(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    names = [name for name in GROUPED_BY if name in frame.columns]
    if frame.empty or not names:
        yield from [("", frame)] if len(frame) else []
        return
    for key, group in frame.groupby(names, dropna=False, sort=False):
        yield ", ".join(str(part) for part in key if part == part and part is not None), group


def front_members(runs: Runs) -> pd.DataFrame:
    """The candidates on the front, most accurate first."""
    marked = mark_front(runs.frame, runs.sweep["directions"])
    front = marked[marked["pareto"]]
    return front.sort_values(["val_accuracy", "latency_p50_ms"], ascending=[False, True]) if len(front) else front


def with_teacher(runs: Runs, frame: pd.DataFrame) -> pd.DataFrame:
    """The teacher's row on top of a frame; from `sweep.json` where MLflow has no run of it."""
    if (frame["stage"] == "teacher").any():
        return frame
    teacher = runs.frame[(runs.frame["stage"] == "teacher") & (runs.frame["status"] == "finished")].head(1)
    if teacher.empty:
        numbers = {key: value for key, value in runs.sweep["teacher"].items() if np.isscalar(value)}
        row = {**numbers, "stage": "teacher", "status": "finished", "control": "teacher", "sweep": runs.name}
        teacher = pd.DataFrame([row], index=pd.Index(["teacher"], name="run_id"))
        teacher = teacher.reindex(columns=[*frame.columns.drop(["pareto", "may_be_optimal"], errors="ignore")])
    marked = teacher.assign(pareto=False, may_be_optimal=False)
    return pd.concat([marked, frame]) if len(frame) else marked


def front_hypervolume(runs: Runs) -> float:
    """Hypervolume of all candidates, percentage points x doublings of latency x doublings of size."""
    curve = hypervolume_curve(runs)
    return curve[-1][1] if curve else 0.0


def hypervolume_curve(runs: Runs) -> list[tuple[int, float]]:
    """(trial number, hypervolume of all candidates up to it), in order of the trials."""
    frame = runs.frame[~retrained(runs.frame)]
    frame = frame[(frame["status"] == "finished") & (frame["stage"] == "candidate")]
    if frame.empty:
        return []
    points = normalised(frame, runs.sweep["teacher"])[list(AXES)].to_numpy()
    volumes = hypervolume_over_trials(points, [runs.sweep["reference_point"][axis] for axis in AXES])
    return [(int(number), float(volume)) for number, volume in zip(frame["trial_number"], volumes, strict=True)]


def choose(front: pd.DataFrame, teacher: Mapping[str, float]) -> dict[str, str]:
    """The variants worth a name: `most_accurate`, `balanced`, `fastest`, `smallest` -> run id; ties by accuracy.

    Raises:
        ValueError: if the front is empty.
    """
    if front.empty:
        raise ValueError("A choice needs at least one candidate on the front, but there is none.")
    ranked = front.sort_values("val_accuracy", ascending=False, kind="stable")
    points = normalised(ranked, teacher).dropna()
    # Latency and size move together: as two axes they would outvote accuracy.
    cost = (points["log2_latency_vs_teacher"] + points["log2_size_vs_teacher"]) / 2
    balanced = knee(np.column_stack([points["error_points"], cost]))
    return {
        "most_accurate": str(ranked.index[0]),
        "balanced": str(points.index[balanced]),
        "fastest": str(ranked["latency_p50_ms"].idxmin()),
        "smallest": str(ranked["size_bytes"].idxmin()),
    }
