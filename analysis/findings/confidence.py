"""Which differences are real: accuracies come from a few thousand images, latencies from a noisy clock."""

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.findings.pareto import Floats, non_dominated

Z_95 = 1.96
"""Half width of the 95 % interval of a normal distribution, in standard deviations."""


def may_be_optimal(frame: pd.DataFrame) -> pd.Series:
    """True for candidates that no other candidate rules out; a front member can be ruled out, too.

    `b` rules `a` out when all of this holds:

    - `b` is more accurate by more than the 95 % interval of a difference,
      p_b - p_a > 1.96 * sqrt(p_b (1 - p_b) / n + p_a (1 - p_a) / n);
    - `b` is no larger;
    - `b` is not measurably slower: the 95 % intervals of p50 overlap, or b's lies below.

    Where no interval of latency was recorded, p50 counts as exact. The formula takes the two accuracies as independent,
    though both come from the same n images: it keeps too many candidates rather than too few. O(n * f) for a front of
    f points.

    Args:
        frame: finished candidates with finite `val_accuracy`, `latency_p50_ms` and `size_bytes`; also `num_val`
            (images) and `latency_half_width` (relative), where known. Without `num_val`, an accuracy counts as exact.
    """
    if frame.empty:
        return pd.Series(dtype=bool, index=frame.index)
    accuracy = frame["val_accuracy"].to_numpy(dtype=np.float64)
    size = frame["size_bytes"].to_numpy(dtype=np.float64)
    variance = variance_of(accuracy, _column(frame, "num_val"))
    low, high = latency_interval(frame)
    # A dominated candidate rules out nothing that its dominator does not: only the non-dominated ones are tried.
    rivals = np.flatnonzero(non_dominated(np.column_stack([low, size, -accuracy])))
    possible = np.ones(len(frame), dtype=np.bool_)
    for rival in rivals:
        lead = accuracy[rival] - accuracy
        sure = lead > Z_95 * np.sqrt(variance[rival] + variance)
        possible &= ~(sure & (size[rival] <= size) & (low[rival] <= high))
    return pd.Series(possible, index=frame.index)


def variance_of(accuracy: Floats, count: Floats) -> Floats:
    """The variance p (1 - p) / n of accuracies in [0, 1]; 0 where n is unknown.

    Example:
        >>> variance_of(np.array([0.5, 0.9]), np.array([100.0, np.nan]))
        array([0.0025, 0.    ])
    """
    return np.divide(accuracy * (1 - accuracy), count, out=np.zeros_like(accuracy), where=count > 0)


def latency_interval(frame: pd.DataFrame) -> tuple[Floats, Floats]:
    """Bounds of the 95 % interval of p50, ms; where none was recorded, both are p50 itself."""
    p50 = frame["latency_p50_ms"].to_numpy(dtype=np.float64)
    half = np.nan_to_num(_column(frame, "latency_half_width"))
    return p50 * (1 - half), p50 * (1 + half)


def resampled(count: int, times: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """The resamples of a bootstrap: positions drawn with replacement, shape (times, count)."""
    return np.random.default_rng(seed).integers(0, max(count, 1), size=(times, count))


def _column(frame: pd.DataFrame, name: str) -> Floats:
    if name not in frame.columns:
        return np.full(len(frame), np.nan)
    return frame[name].to_numpy(dtype=np.float64, na_value=np.nan)


def half_width_95(accuracy: float, count: float) -> float:
    """Half the width of Wilson's 95 % interval of an accuracy in [0, 1] over `count` images; NaN without a count.

    Example:
        >>> round(half_width_95(0.9, 10_000), 4)
        0.0059
    """
    if not (count > 0 and math.isfinite(accuracy)):
        return math.nan
    z = Z_95
    return z / (1 + z**2 / count) * math.sqrt(accuracy * (1 - accuracy) / count + z**2 / (4 * count**2))
