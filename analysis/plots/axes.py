"""What the pictures' axes share: when they are logarithmic, their ticks, and the step line of a front."""

import math

import numpy as np
import numpy.typing as npt
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, NullLocator

LOG_SPREAD = 8.0  # beyond this factor the fast candidates, which matter most, would crowd at a linear axis' end


def needs_log_axis(values: npt.ArrayLike) -> bool:
    """True when the largest value is more than `LOG_SPREAD` times the smallest."""
    array = np.asarray(values, dtype=np.float64)
    array = array[np.isfinite(array)]
    return bool(len(array) and array.min() > 0 and array.max() / array.min() > LOG_SPREAD)


def log_ticks(low: float, high: float) -> list[float]:
    """Ticks of a log axis: 1, 2, 3 and 5 times powers of ten, between `low` and `high`.

    Example:
        >>> log_ticks(0.4, 4)
        [0.5, 1.0, 2.0, 3.0]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    # Parsed, not multiplied: 3 * 10**-1 would be 0.30000000000000004.
    ticks = [float(f"{step}e{power}") for power in powers for step in (1, 2, 3, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def mark_log_axis(axis: Axis, low: float, high: float) -> None:
    """Give a log axis the ticks of `log_ticks` as plain numbers, or its ends where these are too close for those."""
    axis.set_major_locator(FixedLocator(log_ticks(low, high) if high > 2 * low else [low, high]))
    axis.set_major_formatter("{x:.3g}")
    axis.set_minor_locator(NullLocator())


def staircase(latency: npt.ArrayLike, accuracy: npt.ArrayLike, end: float) -> tuple[list[float], list[float]]:
    """The best accuracy within each latency, as the corners of a step line that ends at the latency `end`.

    Example:
        >>> staircase([1.0, 2.0, 3.0], [0.5, 0.4, 0.9], end=4.0)
        ([1.0, 3.0, 3.0, 4.0], [0.5, 0.5, 0.9, 0.9])
    """
    xs: list[float] = []
    ys: list[float] = []
    pairs = sorted(zip(np.asarray(latency).tolist(), np.asarray(accuracy).tolist(), strict=True))
    for x, y in pairs:
        if ys and y <= ys[-1]:
            continue  # slower and no more accurate: not a step
        if ys:
            xs.append(x)
            ys.append(ys[-1])
        xs.append(x)
        ys.append(y)
    return [*xs, max(end, xs[-1])] if xs else [], [*ys, ys[-1]] if ys else []
