"""What can be told apart: accuracies stand on a few thousand images, latencies on a clock that wavers."""

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.findings.pareto import Floats, non_dominated

Z_95 = 1.96


def may_be_optimal(frame: pd.DataFrame) -> pd.Series:
    """True for candidates that no other one rules out; a front member can be ruled out, too.

    `b` rules `a` out when it is more accurate by more than the 95 % interval of a difference,

        p_b - p_a > 1.96 * sqrt(p_b (1 - p_b) / n + p_a (1 - p_a) / n),

    no larger, and no slower than the clock can tell: the 95 % intervals of p50 overlap, or b's is below. Where no
    interval of latency was recorded p50 counts as exact. Both accuracies come from the same n images, so the formula,
    which takes them as independent, keeps rather too many candidates than too few. O(n * f) for a front of f points.

    Args:
        frame: finished candidates with finite `val_accuracy`, `latency_p50_ms` and `size_bytes`; `num_val`, images, and
            `latency_half_width`, relative, where they are known. Without `num_val` an accuracy counts as exact.
    """
    if frame.empty:
        return pd.Series(dtype=bool, index=frame.index)
    accuracy = frame["val_accuracy"].to_numpy(dtype=np.float64)
    size = frame["size_bytes"].to_numpy(dtype=np.float64)
    variance = variance_of(accuracy, _column(frame, "num_val"))
    low, high = latency_interval(frame)
    # Who is beaten on all three axes cannot rule out anybody whom the winner does not rule out.
    rivals = np.flatnonzero(non_dominated(np.column_stack([low, size, -accuracy])))
    possible = np.ones(len(frame), dtype=np.bool_)
    for rival in rivals:
        lead = accuracy[rival] - accuracy
        sure = lead > Z_95 * np.sqrt(variance[rival] + variance)
        possible &= ~(sure & (size[rival] <= size) & (low[rival] <= high))
    return pd.Series(possible, index=frame.index)


def variance_of(accuracy: Floats, count: Floats) -> Floats:
    """p (1 - p) / n of accuracies in [0, 1]; 0 where n is not known.

    Example:
        >>> variance_of(np.array([0.5, 0.9]), np.array([100.0, np.nan]))
        array([0.0025, 0.    ])
    """
    return np.divide(accuracy * (1 - accuracy), count, out=np.zeros_like(accuracy), where=count > 0)


def latency_interval(frame: pd.DataFrame) -> tuple[Floats, Floats]:
    """Bounds of the 95 % interval of p50, ms; both p50 itself where none was recorded."""
    p50 = frame["latency_p50_ms"].to_numpy(dtype=np.float64)
    half = np.nan_to_num(_column(frame, "latency_half_width"))
    return p50 * (1 - half), p50 * (1 + half)


def resampled(count: int, times: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Rows of a bootstrap: shape (times, count), positions drawn with replacement."""
    return np.random.default_rng(seed).integers(0, max(count, 1), size=(times, count))


def _column(frame: pd.DataFrame, name: str) -> Floats:
    if name not in frame.columns:
        return np.full(len(frame), np.nan)
    return frame[name].to_numpy(dtype=np.float64, na_value=np.nan)


def half_width_95(accuracy: float, count: float) -> float:
    """Half of Wilson's 95 % interval of an accuracy in [0, 1] over `count` images; NaN without a count.

    Example:
        >>> round(half_width_95(0.9, 10_000), 4)
        0.0059
    """
    if not (count > 0 and math.isfinite(accuracy)):
        return math.nan
    z = 1.96
    return z / (1 + z**2 / count) * math.sqrt(accuracy * (1 - accuracy) / count + z**2 / (4 * count**2))
