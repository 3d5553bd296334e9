"""One file for a goal in the user's units: the best that fits, the runner-up, or what it would take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.findings.pareto import non_dominated, objectives
from analysis.reading.facts import MB, trial_label


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a file must keep to; None is no limit."""

    max_latency_ms: float | None = None
    """Median latency of one image, ms."""
    max_size_mb: float | None = None
    """Of the ONNX file, megabytes of 1,000,000 bytes."""
    min_accuracy: float | None = None
    """On the validation split, 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("max_latency_ms", "max_size_mb"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"`{name} > 0` must hold, but got {name}={value:g}.")
        value = self.min_accuracy
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"`0 <= min_accuracy <= 1` must hold (0.9 for 90 %), but got min_accuracy={value:g}.")

    def given(self) -> dict[str, float]:
        """The limits that were set."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a goal leads to; positions are run ids."""

    best: str | None
    """The most accurate candidate that keeps to every limit."""
    runner_up: str | None
    """The next most accurate that is no worse than `best` everywhere: cheaper on some axis; else the next at all."""
    nearest: str | None
    """Where nothing fits: the candidate whose largest relative excess over a limit is smallest."""
    would_take: Mapping[str, tuple[float, str]]
    """Where nothing fits: limit -> the value it needs while the others stay, and the candidate that then fits."""
    fitting: int
    """Candidates that keep to every limit."""


def select(candidates: pd.DataFrame, goal: Goal, directions: Mapping[str, str]) -> Choice:
    """The choice among finished candidates; ties go to the faster, then to the smaller.

    Raises:
        ValueError: if there is no candidate.
    """
    if candidates.empty:
        raise ValueError("A choice needs at least one finished candidate, but there is none.")
    ranked = candidates.sort_values(["val_accuracy", "latency_p50_ms", "size_bytes"], ascending=[False, True, True])
    excess = over(ranked, goal)
    fits = ranked[(excess <= 0).all(axis=1)]
    if len(fits):
        return Choice(
            best=str(fits.index[0]),
            runner_up=_runner_up(fits, directions),
            nearest=None,
            would_take={},
            fitting=len(fits),
        )
    nearest = str(excess.max(axis=1).idxmin())
    return Choice(best=None, runner_up=None, nearest=nearest, would_take=_would_take(ranked, excess, goal), fitting=0)


def over(candidates: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    """How far each candidate is over each limit, relative to the limit; 0 and below keeps to it."""
    values = {
        "max_latency_ms": lambda limit: candidates["latency_p50_ms"] / limit - 1,
        "max_size_mb": lambda limit: candidates["size_bytes"] / MB / limit - 1,
        "min_accuracy": lambda limit: (limit - candidates["val_accuracy"]) / max(limit, 1e-9),
    }
    columns = {name: values[name](limit) for name, limit in goal.given().items()}
    return pd.DataFrame(columns, index=candidates.index)


def differences(row: "pd.Series[Any]", other: "pd.Series[Any]") -> str:
    """What `row` costs and saves beside `other`, in words.

    Example:
        >>> best = pd.Series({"val_accuracy": 0.93, "latency_p50_ms": 2.0, "size_bytes": 4e6})
        >>> differences(pd.Series({"val_accuracy": 0.928, "latency_p50_ms": 2.2, "size_bytes": 3e6}), best)
        '0.20 points less accurate, 10 % slower, 25 % smaller'
    """
    points = 100 * (row["val_accuracy"] - other["val_accuracy"])
    said = [f"{abs(points):.2f} points {'more' if points > 0 else 'less'} accurate" if points else "as accurate"]
    for column, less, more in (("latency_p50_ms", "faster", "slower"), ("size_bytes", "smaller", "larger")):
        change = 100 * (row[column] / other[column] - 1)
        if abs(change) >= 0.5:
            said.append(f"{abs(change):.0f} % {less if change < 0 else more}")
    return ", ".join(said)


def _runner_up(fits: pd.DataFrame, directions: Mapping[str, str]) -> str | None:
    points = objectives(fits, directions)
    front = points.index[non_dominated(points.to_numpy())]
    others = [run_id for run_id in (*front, *fits.index) if run_id != fits.index[0]]
    return str(others[0]) if others else None


def _would_take(ranked: pd.DataFrame, excess: pd.DataFrame, goal: Goal) -> dict[str, tuple[float, str]]:
    found = {}
    for name in goal.given():
        rest = ranked[(excess.drop(columns=name) <= 0).all(axis=1)]
        if rest.empty:
            continue
        if name == "min_accuracy":
            found[name] = float(rest["val_accuracy"].iloc[0]), str(rest.index[0])
        else:
            column, unit = ("latency_p50_ms", 1.0) if name == "max_latency_ms" else ("size_bytes", MB)
            found[name] = float(rest[column].min() / unit), str(rest[column].idxmin())
    return found


def in_words(row: "pd.Series[Any]") -> str:
    """A candidate on one line: every number with its unit, split and n."""
    parts = [f"{trial_label(row)}:", f"val {100 * row['val_accuracy']:.2f} %{_count(row, 'num_val')}"]
    if pd.notna(row.get("test_accuracy")):
        parts.append(f"test {100 * row['test_accuracy']:.2f} %{_count(row, 'num_test')}")
    parts.append(f"p50 {row['latency_p50_ms']:#.3g} ms")
    if pd.notna(row.get("latency_p90_ms")):
        parts.append(f"p90 {row['latency_p90_ms']:#.3g} ms")
    return "  ".join([*parts, f"{row['size_bytes'] / MB:#.3g} MB"])


def _count(row: "pd.Series[Any]", name: str) -> str:
    return f" (n = {int(row[name]):,})" if pd.notna(row.get(name)) else ""
