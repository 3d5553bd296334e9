"""The sliders' limits: their ends and steps from the candidates, and which candidates keep them."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.findings.selecting import Goal, excess_over
from analysis.reading.wording import MB

STEPS = 200  # of a slider, roughly: a step is 1, 2 or 5 times a power of ten


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One slider."""

    name: str
    """The field of `Goal` that it sets."""
    column: str
    label: str
    unit: str
    factor: float
    """From the column's unit to the slider's."""
    at_most: bool
    """Whether it bounds from above; its loose end is then the upper one."""


LIMITS = (
    Limit(
        name="max_latency_ms", column="latency_p50_ms", label="Latency p50 at most", unit="ms", factor=1, at_most=True
    ),
    Limit(name="max_size_mb", column="size_bytes", label="Size at most", unit="MB", factor=1 / MB, at_most=True),
    Limit(
        name="min_accuracy",
        column="val_accuracy",
        label="Validation accuracy at least",
        unit="%",
        factor=100,
        at_most=False,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The values between which a slider moves."""

    low: float
    high: float
    step: float

    def loose(self, limit: Limit) -> float:
        """The end at which a limit excludes nobody."""
        return self.high if limit.at_most else self.low


def ends_of(limit: Limit, candidates: pd.DataFrame) -> Ends:
    """The ends of a slider: whole steps, outside or at the least and the largest candidate.

    Example:
        >>> ends_of(LIMITS[2], pd.DataFrame({"val_accuracy": [0.8512, 0.9731]}))
        Ends(low=85.1, high=97.4, step=0.1)
    """
    if candidates.empty:
        return Ends(low=0.0, high=100.0, step=1.0)
    values = limit.factor * candidates[limit.column]
    least, largest = float(values.min()), float(values.max())
    step = _step(max(largest - least, largest / 100, 1e-6) / STEPS)
    low, high = math.floor(least / step + 1e-9), math.ceil(largest / step - 1e-9)
    if limit.at_most:
        low = max(low, 1)  # no file takes 0 ms
    return Ends(low=_tidy(low * step), high=_tidy(max(high, low + 1) * step), step=step)


def moved(limit: Limit, value: Any, old_ends: tuple[Any, Any], ends: Ends) -> float:
    """Where a slider stands between new ends: a loose one stays loose, a limit that was set stays what it is."""
    loose = old_ends[1] if limit.at_most else old_ends[0]
    if value is None or loose is None or float(value) == float(loose):
        return ends.loose(limit)
    return min(max(float(value), ends.low), ends.high)


def goal_of(values: tuple[Any, ...], candidates: pd.DataFrame) -> Goal:
    """The limits that the sliders set; one at its loose end sets none."""
    given = {}
    for limit, value in zip(LIMITS, values, strict=True):
        ends = ends_of(limit, candidates)
        if value is not None and not math.isclose(float(value), ends.loose(limit)):
            number = min(max(float(value), ends.low), ends.high)
            given[limit.name] = number / 100 if limit.unit == "%" else number
    return Goal(**given)


def fitting(candidates: pd.DataFrame, goal: Goal) -> pd.DataFrame:
    """The candidates within every limit."""
    return candidates[(excess_over(candidates, goal) <= 0).all(axis=1)] if len(candidates) else candidates


def said(limit: Limit, value: Any, ends: Ends) -> str:
    """A slider's value in words: `0.45 ms`, or `no limit`."""
    if value is None or math.isclose(float(value), ends.loose(limit)):
        return "no limit"
    return f"{float(value):.6g} {limit.unit}"


def _step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power = math.floor(math.log10(least))
    return next(step for digit in (1, 2, 5, 10) if (step := float(f"{digit}e{power}")) >= least * (1 - 1e-9))


def _tidy(value: float) -> float:
    return float(f"{value:.9g}")
