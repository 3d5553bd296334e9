"""The Pareto front of a sweep: which candidates are on it, and which of them have a name."""

import dataclasses
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd

from analysis.findings.confidence import may_be_optimal
from analysis.findings.pareto import AXES, hypervolume_over_trials, knee, non_dominated, normalised, objectives
from analysis.reading.rows import finished_runs
from analysis.reading.runs import Runs
from trainables.config.candidate import TEACHER_ITSELF

# Networks with a smaller share of the teacher's accuracy are not chosen.
USEFUL = 0.5
# Shares of the teacher's latency at which `winners` looks.
LATENCY_SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
# Candidates compete only where these are equal: accuracies need the same images, latencies the same device.
GROUPED_BY = ("dataset", "latency_device", "latency_runtime")


class TrialResult(Protocol):
    """What `front_of` reads of a trial's record."""

    @property
    def stage(self) -> str:
        """`candidate` or `teacher`."""

    @property
    def status(self) -> str:
        """`finished`, `stopped`, `infeasible` or `failed`."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Name -> value; a trial that did not finish may lack some."""


def front_of(trials: Mapping[Any, TrialResult | Mapping[str, Any]], directions: Mapping[str, str]) -> pd.DataFrame:
    """The trials on the front, in the order given: their rows, indexed by the keys of `trials`.

    Args:
        trials: key -> a trial's record, or its row: metrics, `stage` and `status`.
        directions: column -> `minimize` or `maximize`.
    """
    if not trials:
        return pd.DataFrame()
    keys: list[Hashable] = list(trials)
    rows = [
        trial if isinstance(trial, Mapping) else {**trial.metrics, "stage": trial.stage, "status": trial.status}
        for trial in trials.values()
    ]
    marked = mark_front(pd.DataFrame(rows, index=pd.Index(keys, tupleize_cols=False)), directions)
    return marked[marked["pareto"]]


def most_accurate_first(front: pd.DataFrame) -> pd.DataFrame:
    """The rows by falling validation accuracy, ties by rising latency."""
    # A frame of no trials has no columns to sort by.
    return front.sort_values(["val_accuracy", "latency_p50_ms"], ascending=[False, True]) if len(front) else front


def retrained(frame: pd.DataFrame) -> pd.Series:
    """True for champions that were trained again and for their control arms, which `findings.controls` reports."""
    if "control" not in frame.columns:
        return pd.Series(False, index=frame.index)
    return frame["control"].notna() & (frame["stage"] == "candidate")


def mark_front(frame: pd.DataFrame, directions: Mapping[str, str]) -> pd.DataFrame:
    """A copy with two more columns: `pareto`, no other candidate dominates it; `may_be_optimal`, none rules it out.

    Only finished candidates with finite objectives compete: a stopped, infeasible or failed trial is never on a front,
    however good it looked. The teacher, retrained champions and control arms do not compete. Each data set, device
    and runtime has its own front.
    """
    marked = frame.assign(pareto=False, may_be_optimal=False)
    for _, group in _groups(_searched(frame)):
        points = objectives(group, directions)
        if len(points):
            marked.loc[points.index[non_dominated(points.to_numpy())], "pareto"] = True
            marked.loc[points.index, "may_be_optimal"] = may_be_optimal(group.loc[points.index])
    return marked


def competing(runs: Runs) -> pd.DataFrame:
    """The candidates that compete for the front, with the columns that `mark_front` adds."""
    frame = _searched(mark_front(runs.frame, runs.sweep["directions"]))
    return frame.loc[objectives(frame, runs.sweep["directions"]).index] if len(frame) else frame


def winners(runs: Runs) -> pd.DataFrame:
    """The most accurate candidate within each of `LATENCY_SHARES` of the teacher's latency, one row a share.

    Adds `share`. Shares that no candidate keeps to are left out.
    """
    candidates, scale = competing(runs), with_teacher(runs, runs.frame.head(0)).iloc[0].get("latency_p50_ms")
    if candidates.empty or scale is None or pd.isna(scale):
        return pd.DataFrame()
    rows = []
    for share in LATENCY_SHARES:
        within = candidates[candidates["latency_p50_ms"] <= share * scale]
        if len(within):
            rows.append(within.loc[[within["val_accuracy"].idxmax()]].assign(share=share))
    return pd.concat(rows) if rows else pd.DataFrame()


def untrained(row: "pd.Series[Any]") -> bool:
    """Whether a candidate is the teacher's own network with nothing removed, whose file needs no training."""
    is_teacher = row.get("student_model") == TEACHER_ITSELF and row.get("precision") != "int8_qat"
    return bool(is_teacher and float(row["pruning_ratio"]) == 0)


def split(runs: Runs) -> dict[str, Runs]:
    """One `Runs` per data set, device and runtime with finished candidates, named `DATASET, DEVICE, RUNTIME`.

    With fewer than two such groups, all runs under the name "". Where the teacher was not run on a device, its latency
    there is the one that the candidates' rows name.
    """
    groups = dict(_groups(finished_runs(runs.frame)))
    if len(groups) < 2:
        return {"": runs}
    return {name: _part(runs, group) for name, group in groups.items()}


def of_device(runs: Runs, device: str) -> Runs:
    """The runs that were timed on one device.

    Raises:
        ValueError: if there are none.
    """
    known = runs.frame.get("latency_device", pd.Series(dtype=object))
    rows = runs.frame[(known == device) & (runs.frame["stage"] == "candidate")] if len(known) else runs.frame.iloc[:0]
    if rows.empty:
        there = ", ".join(sorted(known.dropna().unique())) or "not recorded"
        raise ValueError(f"device={device!r} has no candidate in sweep {runs.name}; devices there: {there}.")
    return _part(runs, rows)


def _searched(frame: pd.DataFrame) -> pd.DataFrame:
    """The finished candidates that the search itself proposed."""
    candidates = finished_runs(frame)
    return candidates[~retrained(candidates)]


def _part(runs: Runs, group: pd.DataFrame) -> Runs:
    """The runs on the data, device and runtime of a group, unfinished ones and the teacher included."""
    same = pd.Series(True, index=runs.frame.index)
    for name in GROUPED_BY:
        if name in group.columns:
            same &= runs.frame[name].isin(group[name].unique())
    frame, sweep = runs.frame[same], runs.sweep
    if not (frame["stage"] == "teacher").any() and "reference_latency_p50_ms" in group.columns:
        # The median, in case the sweeps taken together have scales of their own.
        teacher = {**sweep["teacher"], "latency_p50_ms": float(group["reference_latency_p50_ms"].median())}
        sweep = {**sweep, "teacher": teacher}
    return dataclasses.replace(runs, frame=frame, sweeps={**runs.sweeps, runs.name: sweep})


def _groups(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The rows that compete with each other, each group under its name; none for an empty frame."""
    names = [name for name in GROUPED_BY if name in frame.columns]
    if frame.empty or not names:
        yield from [("", frame)] if len(frame) else []
        return
    for key, group in frame.groupby(names, dropna=False, sort=False):
        yield ", ".join(str(part) for part in key if part == part and part is not None), group


def front_members(runs: Runs) -> pd.DataFrame:
    """The candidates on the front, most accurate first."""
    marked = mark_front(runs.frame, runs.sweep["directions"])
    return most_accurate_first(marked[marked["pareto"]])


def with_teacher(runs: Runs, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the teacher's row on top; made from `sweep.json` where MLflow has no run of the teacher."""
    if (frame["stage"] == "teacher").any():
        return frame
    teacher = finished_runs(runs.frame, "teacher").head(1)
    if teacher.empty:
        numbers = {key: value for key, value in runs.sweep["teacher"].items() if np.isscalar(value)}
        row = {**numbers, "stage": "teacher", "status": "finished", "control": "teacher", "sweep": runs.name}
        teacher = pd.DataFrame([row], index=pd.Index(["teacher"], name="run_id"))
        teacher = teacher.reindex(columns=[*frame.columns.drop(["pareto", "may_be_optimal"], errors="ignore")])
    marked = teacher.assign(pareto=False, may_be_optimal=False)
    return pd.concat([marked, frame]) if len(frame) else marked


def front_hypervolume(runs: Runs) -> float:
    """Hypervolume of all candidates, in percentage points x doublings of latency x doublings of size."""
    curve = hypervolume_curve(runs)
    return curve[-1][1] if curve else 0.0


def hypervolume_curve(runs: Runs) -> list[tuple[int, float]]:
    """(trial number, hypervolume of all candidates up to it), in order of the trials."""
    frame = _searched(runs.frame)
    if frame.empty:
        return []
    points = normalised(frame, runs.sweep["teacher"])[list(AXES)].to_numpy()
    volumes = hypervolume_over_trials(points, [runs.sweep["reference_point"][axis] for axis in AXES])
    return [(int(number), float(volume)) for number, volume in zip(frame["trial_number"], volumes, strict=True)]


def choose(front: pd.DataFrame, teacher: Mapping[str, float]) -> dict[str, str]:
    """The named variants `most_accurate`, `balanced`, `fastest` and `smallest` -> run id; ties go to the more accurate.

    Nobody ships a network that the cut has ruined: those with less than `USEFUL` of the teacher's accuracy are not
    named, unless there are no others.

    Raises:
        ValueError: if the front is empty.
    """
    if front.empty:
        raise ValueError("A choice needs at least one candidate on the front, but there is none.")
    useful = front[front["val_accuracy"] >= USEFUL * teacher["val_accuracy"]]
    ranked = (front if useful.empty else useful).sort_values("val_accuracy", ascending=False, kind="stable")
    points = normalised(ranked, teacher).dropna()
    # Latency and size move together: as two axes of the knee they would outvote accuracy.
    cost = (points["log2_latency_vs_teacher"] + points["log2_size_vs_teacher"]) / 2
    balanced = knee(np.column_stack([points["error_points"], cost]))
    return {
        "most_accurate": str(ranked.index[0]),
        "balanced": str(points.index[balanced]),
        "fastest": str(ranked["latency_p50_ms"].idxmin()),
        "smallest": str(ranked["size_bytes"].idxmin()),
    }
