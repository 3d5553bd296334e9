"""One latency for files of one shape: they differ in their weights, so their latencies differ by noise alone."""

import numpy as np
import numpy.typing as npt
import pandas as pd

Z_95 = 1.96
CLEAN = "clean"  # `trainables.records.latency.CLEAN`, which this room may not import
# Latencies are pooled where these are equal. A sweep that another machine ran has latencies of its own.
SAME = ("sweep", "latency_shape", "latency_device", "latency_provider")
# Value -> its half-width.
POOLED = {"latency_p50_ms": "latency_half_width", "latency_vs_teacher": "latency_vs_teacher_half_width"}
TAILS = ("latency_p90_ms", "latency_p99_ms", "latency_p90_bound_ms")


def pool_latencies(frame: pd.DataFrame) -> pd.DataFrame:
    """A copy in which all finished rows of one shape have one p50, one ratio to the teacher and their intervals.

    Only clean rows count, if there are any. `latency_own_p50_ms` is what a row's own measurement said, and
    `latency_pooled` of how many measurements the pooled one is made. Of p90 and p99, rows have the median.
    """
    if not {*SAME, *POOLED, "latency_verdict", *POOLED.values()} <= set(frame.columns):
        return frame
    out = frame.assign(latency_own_p50_ms=frame["latency_p50_ms"], latency_pooled=np.nan)
    known = frame[(frame["status"] == "finished") & frame["latency_shape"].notna() & frame["latency_p50_ms"].notna()]
    for _, group in known.groupby(list(SAME), dropna=False, sort=False):
        clean = group[group["latency_verdict"] == CLEAN]
        # a measurement that two rows share, as of the teacher's file, counts once
        used = (group if clean.empty else clean).drop_duplicates(["latency_p50_ms", "latency_half_width"])
        out.loc[group.index, "latency_pooled"] = len(used)
        if len(group) == 1:
            continue
        for value, half_width in POOLED.items():
            pair = pooled(used[value].to_numpy(np.float64), used[half_width].to_numpy(np.float64))
            out.loc[group.index, [value, half_width]] = pair
        for tail in (name for name in TAILS if name in frame.columns):
            out.loc[group.index, tail] = used[tail].median()
    return out


def pooled(values: npt.NDArray[np.float64], half_widths: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The mean of measurements of one quantity, and the half-width of its 95 % interval, relative to it.

    Each counts by the inverse of its variance; an interval of 0 counts as the narrowest other one, or 0.1 %. If they
    spread more than their intervals allow, the interval is widened by sqrt(chi^2 / (n - 1)), the scale factor of the
    Particle Data Group (Review of Particle Physics, section 5.2).

    Example:
        >>> value, half_width = pooled(np.array([1.0, 1.0, 1.0, 1.0]), np.full(4, 0.02))
        >>> round(value, 3), round(half_width, 3)
        (1.0, 0.01)
    """
    positive = half_widths[half_widths > 0]
    sigma = np.where(half_widths > 0, half_widths, positive.min() if len(positive) else 1e-3) * values / Z_95
    weights = sigma**-2
    mean = float((weights * values).sum() / weights.sum())
    chi2 = float((((values - mean) / sigma) ** 2).sum())
    scale = max(1.0, chi2 / (len(values) - 1)) ** 0.5 if len(values) > 1 else 1.0
    return mean, float(Z_95 * scale * weights.sum() ** -0.5 / mean)
