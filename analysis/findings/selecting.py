"""Choose one file for a goal in the user's units: the best that fits and a runner-up, or what it would take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from analysis.findings.pareto import non_dominated, objectives
from analysis.reading.wording import MB


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Limits on a file; None means no limit."""

    max_latency_ms: float | None = None
    """Median latency of one image, ms."""
    max_size_mb: float | None = None
    """Size of the ONNX file, megabytes of 1,000,000 bytes."""
    min_accuracy: float | None = None
    """Accuracy on the validation split, 0 to 1."""

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
    """The candidates that a goal leads to, by run id."""

    best: str | None
    """The most accurate candidate within every limit."""
    runner_up: str | None
    """The next most accurate candidate that is cheaper than `best` on some axis; if there is none, the next of all."""
    nearest: str | None
    """If nothing fits: the candidate whose largest relative excess over a limit is smallest."""
    would_take: Mapping[str, tuple[float, str]]
    """If nothing fits: limit -> the value that admits a candidate if the other limits stay, and that candidate."""
    fitting: int
    """Number of candidates within every limit."""


def select(candidates: pd.DataFrame, goal: Goal, directions: Mapping[str, str]) -> Choice:
    """Choose among finished candidates; ties go to the faster, then to the smaller.

    Raises:
        ValueError: if there is no candidate.
    """
    if candidates.empty:
        raise ValueError("A choice needs at least one finished candidate, but there is none.")
    ranked = candidates.sort_values(["val_accuracy", "latency_p50_ms", "size_bytes"], ascending=[False, True, True])
    excess = excess_over(ranked, goal)
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


def excess_over(candidates: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    """How far each candidate exceeds each limit, relative to the limit; 0 and below is within it."""
    values = {
        "max_latency_ms": lambda limit: candidates["latency_p50_ms"] / limit - 1,
        "max_size_mb": lambda limit: candidates["size_bytes"] / MB / limit - 1,
        # A limit of 0 is allowed, and every accuracy keeps it.
        "min_accuracy": lambda limit: (limit - candidates["val_accuracy"]) / max(limit, 1e-9),
    }
    columns = {name: values[name](limit) for name, limit in goal.given().items()}
    return pd.DataFrame(columns, index=candidates.index)


def rounded_to_admit(name: str, value: float) -> str:
    """A limit of three digits that still admits the value: rounded up for an upper limit, down for a lower one."""
    if value <= 0:
        return "0"
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    digits = math.floor(value / step + 1e-9) if name == "min_accuracy" else math.ceil(value / step - 1e-9)
    return f"{digits * step:.6g}"


def _runner_up(fits: pd.DataFrame, directions: Mapping[str, str]) -> str | None:
    # The front comes first: a candidate that the best one dominates would be a choice without an advantage.
    points = objectives(fits, directions)
    front = points.index[non_dominated(points.to_numpy())]
    others = [run_id for run_id in (*front, *fits.index) if run_id != fits.index[0]]
    return str(others[0]) if others else None


def _would_take(ranked: pd.DataFrame, excess: pd.DataFrame, goal: Goal) -> dict[str, tuple[float, str]]:
    found = {}
    for name in goal.given():
        rest = ranked[(excess.drop(columns=name) <= 0).all(axis=1)]
        if rest.empty:
            continue  # giving up this limit alone does not help
        if name == "min_accuracy":
            found[name] = float(rest["val_accuracy"].iloc[0]), str(rest.index[0])
        else:
            column, unit = ("latency_p50_ms", 1.0) if name == "max_latency_ms" else ("size_bytes", MB)
            found[name] = float(rest[column].min() / unit), str(rest[column].idxmin())
    return found
