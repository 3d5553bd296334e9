"""The recorded table that `replay.py` searches: what trained candidates measure, epoch by epoch."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from analysis.findings.pareto import AXES, hypervolume_over_trials, normalised
from trainables.records.trial import read_trial

MEASURED = ("val_accuracy", "latency_p50_ms", "reference_latency_p50_ms", "size_bytes", "num_val")
TEACHER = ("teacher_latency_p50_ms", "teacher_size_bytes", "reference_error_points")
ALWAYS = ("seed", "student_epochs", "recovery_epochs", "pruning_method", "pruning_ratio")
NOT_SEARCHED = {*MEASURED, *TEACHER, "key", "seed", "student_epochs", "recovery_epochs"}


def record_table(out: Path, sweeps: Sequence[str]) -> pd.DataFrame:
    """One row per finished trial of some sweeps on one task.

    Columns: `key`; `ALWAYS` and every parameter that varies; `MEASURED` and `TEACHER`; `epoch_001_val_accuracy` and
    `epoch_001_seconds` onwards, student and recovery in one line.

    Raises:
        ValueError: if there is no finished trial, or the sweeps had different teachers.
    """
    rows = [row for sweep in sweeps for row in _rows(out / "sweeps" / sweep)]
    if not rows:
        raise ValueError(f"{out} holds no finished trial of {', '.join(sweeps)}.")
    table = pd.DataFrame(rows)
    if len(table[list(TEACHER)].drop_duplicates()) > 1:
        raise ValueError(f"The sweeps {', '.join(sweeps)} had different teachers; their candidates do not compare.")
    epochs = [name for name in table.columns if name.startswith("epoch_")]
    kept = {"key", *ALWAYS, *MEASURED, *TEACHER, *epochs}
    constant = [name for name in table.columns if name not in kept and table[name].nunique(dropna=False) == 1]
    return table.drop(columns=constant)


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    sweep = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    teacher = {f"teacher_{name}": sweep["teacher"][name] for name in ("latency_p50_ms", "size_bytes")}
    teacher["reference_error_points"] = sweep["reference_point"]["error_points"]
    for path in sorted(folder.glob("trials/*/record.json")):
        record = read_trial(path.parent)
        if record.status != "finished":
            continue
        row = {"key": record.key, **record.params, **{name: record.metrics[name] for name in MEASURED}, **teacher}
        for step, epoch in enumerate(record.curve, start=1):
            row |= {f"epoch_{step:03}_val_accuracy": epoch.val_accuracy, f"epoch_{step:03}_seconds": epoch.seconds}
        yield row


class Table:
    """Recorded trials, one for each point of the space, and what they are worth."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.rows: list[dict[str, Any]] = [dict(row) for row in frame.to_dict("records")]
        self.searched = [
            name
            for name in frame.columns
            if name not in NOT_SEARCHED and not name.startswith("epoch_") and frame[name].nunique() > 1
        ]
        self.space = {name: _distribution(frame[name]) for name in self.searched}
        self.places = np.array([[self._place(name, row[name]) for name in self.searched] for row in self.rows])
        first = self.rows[0]
        teacher = {"latency_p50_ms": first["teacher_latency_p50_ms"], "size_bytes": first["teacher_size_bytes"]}
        self.axes = normalised(frame, teacher)[list(AXES)].to_numpy()
        self.reference = [first["reference_error_points"], 1.0, 1.0]  # as sweeps.search.objectives.reference_point
        self.best = float(hypervolume_over_trials(self.axes, self.reference)[-1])
        self.curves = [_series(row, "val_accuracy") for row in self.rows]
        self.seconds = [_series(row, "seconds") for row in self.rows]

    @staticmethod
    def drawn(frame: pd.DataFrame, seed: int) -> "Table":
        """One of the training seeds of every point, by lot."""
        names = Table(frame).searched
        shuffled = frame.sample(frac=1, random_state=seed)
        return Table(shuffled.drop_duplicates(subset=names or None).sort_index().reset_index(drop=True))

    def nearest(self, params: Mapping[str, Any], free: npt.NDArray[np.bool_]) -> int:
        """The free row closest to some parameters; a category counts 1, a range from end to end as well."""
        wanted = np.array([self._place(name, params[name]) for name in self.searched])
        gap = np.nan_to_num(np.abs(self.places - wanted))  # a parameter that a row does not have is no distance
        categories = [isinstance(self.space[name], CategoricalDistribution) for name in self.searched]
        gap[:, categories] = gap[:, categories] > 0
        distance = np.where(free, gap.sum(axis=1), np.inf)
        return int(np.argmin(distance))

    def _place(self, name: str, value: Any) -> float:
        distribution = self.space[name]
        if isinstance(distribution, CategoricalDistribution):
            return float(distribution.choices.index(value)) if value in distribution.choices else math.nan
        assert isinstance(distribution, FloatDistribution)
        scale = math.log if distribution.log else float
        return (scale(value) - scale(distribution.low)) / (scale(distribution.high) - scale(distribution.low))


def _distribution(column: pd.Series) -> BaseDistribution:
    values = column.dropna()
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        return CategoricalDistribution(sorted(values.unique()))
    low, high = float(values.min()), float(values.max())
    return FloatDistribution(low, high, log=column.name == "learning_rate")


def _series(row: Mapping[str, Any], what: str) -> list[float]:
    values = (row.get(f"epoch_{step:03}_{what}", math.nan) for step in itertools.count(1))
    return list(itertools.takewhile(lambda value: not math.isnan(value), values))


def read_table(path: Path) -> pd.DataFrame:
    """A table by its name: Parquet, or CSV in any compression that pandas knows."""
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
